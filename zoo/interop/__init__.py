"""Conversions of the zoo's models and parameters to the formats of other tools, and back.

    flax               any model as a linen or an nnx module
    files              parameters and Configs in safetensors files
    artefacts          any model as a ``jax.export`` artefact
    torchvision        weights of AlexNet and VGG
    recurrent_weights  weights of recurrent layers from and to flax and torch

``import zoo`` does not import this package, as flax takes a while.  Its functions that take paths
are the only ones of the zoo that touch files.
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
