"""Conversion of models and parameters to and from the formats of other tools.

    flax               any model as a linen or an nnx module
    files              parameters and Configs in safetensors files
    artefacts          any model as a ``jax.export`` artefact
    torchvision        AlexNet and VGG weights to and from torchvision
    recurrent_weights  weights of recurrent layers to and from flax and torch

``import zoo`` does not import this package, because importing flax is slow.  Functions of the zoo
that read or write files are all in this package.
"""

from zoo.interop.artefacts import PLATFORMS, export
from zoo.interop.files import DTYPES, load_config, load_safetensors, save_safetensors
from zoo.interop.flax import LinenModel, NnxModel, to_linen, to_nnx

__all__ = [
    "DTYPES",
    "PLATFORMS",
    "LinenModel",
    "NnxModel",
    "export",
    "load_config",
    "load_safetensors",
    "save_safetensors",
    "to_linen",
    "to_nnx",
]
