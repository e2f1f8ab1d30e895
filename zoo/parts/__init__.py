"""Components that several models share.

layers             initialisers, activations, dense and convolutional layers, dropout, losses
convolution        convolution over any number of axes, with fast forms for a CPU
pooling            maximum and mean pooling
recurrence         one recurrent layer over time
recurrent_layers   stacked and bidirectional recurrent layers
attention          soft attention
decoder            a recurrent network that generates a sequence given a memory
language           token embeddings, the loss of the next token, generation
decode             greedy decoding, sampling and beam search with any step function
likelihood         the likelihood of a restricted Boltzmann machine
matlab             Matlab's convolutions
parameters         parameters by name, and their transfer between models
config, checking   checks of Configs and arguments
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
