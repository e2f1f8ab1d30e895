"""Speed: ``python -m evals.speed [ROW ...]`` times whole training steps of the zoo and of its peers.

A step is forward, backward and the SGD-momentum update.  All contenders of a row start from the same parameters, see the same
batch and compute the same function, in interleaved blocks of one session: a ratio is the zoo's time over its peer's in the same
round, and what is reported is the median of the rounds and their extremes.  Below 1 the zoo is faster.

    mlp     784-800-800-10, batch 128: the step, the same with the batch and the width doubled, its compilation, the first step
    loop    the trainer's host loop over the jitted step alone, for a tiny model and for that of ``mlp``

The zoo's step is the trainer's own: it masks padding, counts, and reports accuracy as well.  The peers only train: flax linen
with optax.sgd in its TrainState, jitted, the state donated; torch with its modules and its SGD, on two threads.  A busy machine
flatters us, as it slows torch most, whose threads wait for each other; the command says what other programs took.

``workloads`` holds the models, ``contenders`` the training steps, ``rows`` what is measured.
"""
