"""Components that several models share.

layers             initialisers, activations, dense and convolutional layers, dropout, losses
convolution        convolution over any number of axes, with fast forms for a CPU
pooling            maximum and mean pooling
recurrence         one recurrent layer over time
recurrent_layers   stacked and bidirectional recurrent layers
attention          soft attention
decoder            a recurrent network that generates a sequence given a memory
language           token embeddings, the loss of the next token, generation
acoustics          log-mel spectra and MFCC of a recording
labelling          labellings of a sequence: the CTC loss, best path, alignment, edit distance
prefix_search      the most probable labelling: prefix beam search with a lexicon and bigrams
hmm                hidden Markov models: likelihood, posteriors, best path, graphs of phones
decode             greedy decoding, sampling and beam search with any step function
likelihood         the likelihood of a restricted Boltzmann machine
matlab             Matlab's convolutions
parameters         parameters by name, and their transfer between models
config, checking   checks of Configs and arguments
"""

from zoo.parts import (
    acoustics,
    attention,
    checking,
    config,
    convolution,
    decode,
    decoder,
    hmm,
    labelling,
    language,
    layers,
    likelihood,
    matlab,
    parameters,
    pooling,
    prefix_search,
    recurrence,
    recurrent_layers,
)

__all__ = [
    "acoustics",
    "attention",
    "checking",
    "config",
    "convolution",
    "decode",
    "decoder",
    "hmm",
    "labelling",
    "language",
    "layers",
    "likelihood",
    "matlab",
    "parameters",
    "pooling",
    "prefix_search",
    "recurrence",
    "recurrent_layers",
]
