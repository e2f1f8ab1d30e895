"""Speed: ``python -m evals.speed [ROW ...]`` times training steps of the zoo and its peers.

A step is forward, backward and the SGD-momentum update.  All contenders of a row start from the
same parameters, see the same batch and compute the same function, in interleaved blocks of one
session.  A ratio is the zoo's time over its peer's in the same round; the median over rounds and
the extremes are reported.  Below 1 the zoo is faster.

    mlp           784-800-800-10, batch 128
    convnet       the network of flax's MNIST example, batch 128
    lenet5        the preset, batch 128
    vgg32         eight 3x3 convolutions of 64 to 512 features on images of 32x32, batch 32
    tdnn          the preset, over time, without dropout, batch 64
    translation   GRUs of 256 units with attention, sentences of 20 tokens out of 8,000, batch 64
    caption       an LSTM of 256 units with attention over 8x8 locations of 96x96 images,
                  captions of 12 tokens out of 1,000, batch 32
    ctc           a bidirectional LSTM of 3x128 units that reads four frames a step, with CTC,
                  16 recordings of up to 320 frames
    beam          translations of 16 such sentences with beam width 5, all steps compiled, over the
                  same search in numpy and in a Python loop
    captioning    captions of 16 such images, 12 tokens each, over the same
    prefix-search labels of 32 recordings of 75 steps with beam width 25, over the same search in
                  numpy and with Python's dictionaries
    ctc-loss      the CTC loss of 32 sequences of 300 steps with 40 labels out of 29, and its
                  gradient, over torch and over optax alone
    loop          the trainer's host loop over the jitted step alone, for a tiny model, for that of
                  ``mlp``, and for LeNet-5
    parallel      the step as ``train.engine.parallel`` compiles it over the jitted step alone, for
                  the same models
    replicas      eight runs in one process over eight runs one after the other; whole processes
    start         from the first trace to the end of the first step, in a new process: with cached
                  programs over without
    cd1, cd25     a step of contrastive divergence with 1 and 25 Gibbs steps, 784-500, batch 100,
                  over plain torch and numpy
    ais           an estimate of log Z of the same RBM, 1,000 temperatures, 100 chains, over the
                  same
    augment       random deformations of a batch of LeNet-5's images over its training step, and
                  over torch doing the same
    convolutions  the formulation that ``zoo.parts.convolution`` chooses over the fastest one, for
                  each pass of each convolution up to ``tdnn``

The first eight time the step, the step with each size doubled (batch, width, size of the inputs
...), compilation, and the first step.  The last one shows the estimate and the measurement of every
plausible formulation.

The zoo's step is the trainer's own: it also masks padding, counts, and reports accuracy.  The peers
only train: flax linen with optax.sgd in its TrainState, jitted, with donated state; torch with its
modules and its SGD, on two threads.  A busy machine flatters the zoo, because torch's threads wait
for each other and suffer most; the command reports the time taken by other programs.

``workloads`` holds the models; ``recurrent``, ``translation``, ``captions`` and ``speech`` hold
the sequence models; ``contenders`` the training steps; ``energy`` the algorithms without a loss
gradient; ``rows`` the measurements.
"""
