"""Parameters in safetensors files, optionally with their Config.

from zoo import interop

interop.save_safetensors("mlp.safetensors", params, cfg)
params = interop.load_safetensors("mlp.safetensors")
mlp, cfg = interop.load_config("mlp.safetensors")
"""

import json
from os import PathLike
from typing import Any

import cattrs
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from jax import Array

from zoo import MODELS
from zoo.base import Model, Params
from zoo.interop.shapes import nodes, require_fit, shapes_of

DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
"""Types that a leaf in a safetensors file may have."""

_converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)


def save_safetensors(path: str | PathLike[str], params: Params, cfg: Any = None) -> None:
    """Writes parameters under dotted names such as "layer_0.kernel".

    All types in ``DTYPES`` are stored exactly.
    cfg: the model's Config, stored in the file's metadata for ``load_config``; the parameters must
    fit it.
    Raises ValueError naming what a file cannot hold: a name that is empty, has a dot or is not a
    string, a node that is neither a dict nor an array, an empty dict, or another type.
    """
    metadata = None
    if cfg is not None:
        name = next((name for name, module in MODELS.items() if type(cfg) is module.Config), None)
        if name is None:
            raise ValueError(f"cfg={cfg!r}, allowed: the Config of one of {', '.join(MODELS)}")
        require_fit("params", params, shapes_of(MODELS[name].init, cfg), dtypes=False)
        metadata = {"model": name, "config": json.dumps(_converter.unstructure(cfg))}
    tensors = {}
    for keys, leaf in nodes(params):
        if (
            not keys
            or not all(isinstance(key, str) and key and "." not in key for key in keys)
            or keys == ("__metadata__",)
        ):
            raise ValueError(
                f"params: name {keys}, allowed: a path of strings, not empty, without dots, "
                "not '__metadata__'"
            )
        kind = str(getattr(leaf, "dtype", repr(leaf)))
        if kind not in DTYPES:
            raise ValueError(
                f"params: {'.'.join(keys)} is {kind}, allowed: arrays, in dicts, of "
                f"{', '.join(DTYPES)}"
            )
        tensors[".".join(keys)] = np.asarray(leaf, order="C")
    safetensors.numpy.save_file(tensors, path, metadata)


def load_safetensors(path: str | PathLike[str], like: Any = None) -> Params:
    """Reads parameters as nested dicts of arrays; dots in names separate the levels.

    like: parameters, or their shapes (``jax.eval_shape(module.init, cfg, key)``), whose names,
    shapes and types must match.
    Raises ValueError naming the file and every leaf that is missing, unknown or of another shape or
    type, or one that JAX cannot hold (64 bits without ``jax_enable_x64``); FileNotFoundError.
    """
    arrays: dict[str, Array] = {}
    with open_safetensors(path) as file:
        for name in file.keys():  # noqa: SIM118 -- not a dict
            try:
                value = file.get_tensor(name)
            except Exception as error:  # NumPy lacks some types that a file may declare
                raise ValueError(
                    f"{path}: {name}: unreadable: {error}; types allowed: {', '.join(DTYPES)}"
                ) from error
            arrays[name] = jnp.array(value)
            if arrays[name].dtype != value.dtype:
                raise ValueError(
                    f"{path}: {name} has type {value.dtype}, which needs jax_enable_x64"
                )
    for name in arrays:
        if clash := next((other for other in arrays if other.startswith(name + ".")), None):
            raise ValueError(f"{path}: {name} is an array, and a dict in {clash}")
    params = unflatten_dict(arrays, sep=".")
    if like is not None:
        require_fit(str(path), params, like, dtypes=True)
    return params


def load_config(path: str | PathLike[str]) -> tuple[Model, Any]:
    """The module and Config of a file that ``save_safetensors`` wrote with ``cfg``.

    Raises ValueError naming the file if it has no Config, or one of an unknown model;
    FileNotFoundError.
    """
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
    if metadata.get("model") not in MODELS:
        raise ValueError(
            f"{path}: model {metadata.get('model')!r} in its metadata, "
            f"allowed: one of {', '.join(MODELS)}"
        )
    module = MODELS[metadata["model"]]
    try:
        return module, _converter.structure(json.loads(metadata["config"]), module.Config)
    except Exception as error:  # any error in untrusted text
        raise ValueError(
            f"{path}: config in its metadata: {type(error).__name__}: {error}"
        ) from error


def open_safetensors(path: str | PathLike[str]) -> Any:
    """Opens a safetensors file for reading names and tensors.

    Raises ValueError naming the file if it is not a safetensors file; FileNotFoundError.
    """
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
