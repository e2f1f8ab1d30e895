"""The engine: how a recipe becomes trained parameters.

The way from ``fit`` to the gradient, in the order in which it is read:

    trainer.fit, trainer.run     what is asked for: a model and data, or a recipe with its stages
    stage.prepare                checks everything, before there is a folder or a step: a ``Stage``
    trainer._run_stage           folder, lock, members; where an interrupted run continues
    loop.Loop                    the host loop: dispatch, log, evaluate, decide, save
    dispatch.Dispatcher          hands steps to the device, a few dispatches ahead
    parallel.Layout.steps        spreads steps over devices, and compiles them
    step.make_steps              several steps in one dispatch
    step.make_step               one update of the parameters
    step.make_gradients          sums over a batch, and the gradient of the model's ``loss``

Beside them: ``checks`` (data and settings), ``optimizer`` (a recipe's optimizer in optax), ``member``
(one of several runs side by side), ``checkpoint`` and ``run_folder`` (what is on disk), ``cluster``
(several processes), ``progress`` (what a person sees), ``memory`` (of the host).

What steps are fed with is ``train.batches.Feed``, outside of this package, as data do not know who
reads them.
"""
