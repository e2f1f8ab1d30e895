"""Speed: ``python -m evals.speed [ROW ...]`` times whole training steps of the zoo and of its peers.

A step is forward, backward and the SGD-momentum update.  All contenders of a row start from the same parameters, see the same
batch and compute the same function, in interleaved blocks of one session: a ratio is the zoo's time over its peer's in the same
round, and what is reported is the median of the rounds and their extremes.  Below 1 the zoo is faster.

    mlp           784-800-800-10, batch 128
    convnet       the network of flax's MNIST example, batch 128
    lenet5        the preset, batch 128
    vgg32         eight 3x3 convolutions of 64 to 512 features on images of 32x32, batch 32
    tdnn          the preset, over time, without dropout, batch 64
    translation   GRUs of 256 units with attention between sentences of 20 tokens out of 8,000, batch 64
    caption       images of 96x96 become 8x8 places, at which an LSTM of 256 units looks, 12 tokens out of 1,000, batch 32
    beam          translations of 16 such sentences by a beam of width 5, all steps compiled, over numpy and over a loop in Python
    captioning    captions of 16 such images of 12 tokens, over the same
    loop          the trainer's host loop over the jitted step alone, for a tiny model, for that of ``mlp``, and for LeNet-5
    parallel      the step as ``train.engine.parallel`` compiles it over the jitted step alone, for the same models
    replicas      eight runs side by side over as many one after the other: whole processes
    start         from the first trace to the end of the first step, in a new process, over the same without cached programs
    cd1, cd25     a step of contrastive divergence of 1 and 25 Gibbs steps, 784-500, batch 100, over plain torch and numpy
    ais           an estimate of log Z of the same machine: 1,000 temperatures, 100 chains, over the same
    augment       random deformations of a batch of LeNet-5's images, over its training step, and over torch doing the same
    convolutions  what ``zoo.parts.convolution`` chooses over the fastest formulation, for each pass of each convolution up to
                  ``tdnn``

The first seven time the step, the same with the batch, the width, the size of the inputs and so on doubled, compilation, and
the first step.  The last one shows the estimate and the measurement of every formulation that may matter.

The zoo's step is the trainer's own: it masks padding, counts, and reports accuracy as well.  The peers only train: flax linen
with optax.sgd in its TrainState, jitted, the state donated; torch with its modules and its SGD, on two threads.  A busy machine
flatters us, as it slows torch most, whose threads wait for each other; the command says what other programs took.

``workloads`` holds the models, ``recurrent``, ``translation`` and ``captions`` those of sequences, ``contenders`` the training
steps, ``energy`` what has no gradient of a loss, ``rows`` what is measured.
"""
