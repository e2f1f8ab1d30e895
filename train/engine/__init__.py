"""The engine: how a recipe becomes trained parameters.

The call chain from ``fit`` to the gradient, which is also a good reading order:

    trainer.fit, trainer.run     entry points: a model and data, or a recipe with its stages
    stage.prepare                checks everything before creating a folder: a ``Stage``
    trainer._run_stage           folder, lock, members, resuming
    loop.Loop                    the host loop: dispatch, log, evaluate, decide, save
    dispatch.Dispatcher          dispatches steps to the device, a few ahead
    parallel.Layout.steps        distributes steps over devices and compiles them
    step.make_steps              several steps in one dispatch
    step.make_step               one update of the parameters
    step.make_gradients          sums of the gradient and metrics of the model's ``loss``

Other modules: ``checks`` (data and settings), ``optimizer`` (a recipe's optimizer in optax),
``member`` (one of several runs trained in parallel), ``checkpoint`` and ``run_folder`` (files),
``cluster`` (several processes), ``progress`` (console output), ``memory`` (host memory).

Steps read their batches from ``train.batches.Feed``, which is outside this package because the data
do not depend on training.
"""
