"""What several models are made of.

layers             initialisers, activations, dense and convolutional layers, dropout, losses
convolution        convolution over any number of axes, and its fast forms on a CPU
pooling            maxima and means of windows
recurrence         recurrent layers over time
attention, decoder where to look, and what writes a sequence given a memory
language           vectors of tokens, the loss of the next one, generation
decode             greedy decoding, sampling and beam search with any step function
likelihood         how probable data are to an energy-based model
matlab             Matlab's convolutions
"""

from zoo.parts import (
    attention,
    checking,
    config,
    convolution,
    decode,
    decoder,
    language,
    layers,
    likelihood,
    matlab,
    parameters,
    pooling,
    recurrence,
    recurrent_layers,
)

__all__ = [
    "attention",
    "checking",
    "config",
    "convolution",
    "decode",
    "decoder",
    "language",
    "layers",
    "likelihood",
    "matlab",
    "parameters",
    "pooling",
    "recurrence",
    "recurrent_layers",
]
