"""Conversions of any model of the zoo to flax (linen, nnx), safetensors files and ``jax.export`` artefacts.

    from zoo import interop

    net = interop.to_linen(mlp, cfg)                      # net.apply({"params": params}, images)
    net = interop.to_nnx(mlp, cfg, params=params)         # net(images)
    interop.save_safetensors("mlp.safetensors", params, cfg)
    data = interop.export(mlp, cfg, params=params).serialize()

Parameters stay what they are, nested dicts of arrays with the same names, so going back is taking them out again.
This module is not imported by ``import zoo``: flax takes a while.  Its safetensors functions take paths, as everyone
expects; they and ``zoo.torchvision`` are the only ones of the package that touch files.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from os import PathLike
from typing import Any

import cattrs
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen, nnx
from flax.core import unfreeze
from flax.traverse_util import unflatten_dict
from jax import Array

from zoo import MODELS
from zoo.base import Model, Params

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
"""What a leaf in a safetensors file may hold."""

_converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)


class LinenModel(linen.Module):
    """A model of the zoo as a linen module, made by ``to_linen``.

    Fields are functions, not the model's module, so that it can be copied and pickled.
    """

    init_fn: Callable[..., Params]
    apply_fn: Callable[..., Any]
    cfg: Any

    @linen.compact
    def __call__(self, inputs: Any, *, deterministic: bool = True) -> Any:
        """Inputs [batch, ...] -> what the model's ``apply`` returns; not deterministic, it draws from the rng "dropout".

        Raises ValueError naming every parameter that is missing, unknown or of another shape.
        """
        if self.is_mutable_collection("params") and not self.variables.get("params"):
            for name, value in self.init_fn(self.cfg, _typed(self.make_rng("params"))).items():
                self.put_variable("params", name, value)
        params = unfreeze(dict(self.variables.get("params", {})))
        require_fit("params", params, shapes_of(self.init_fn, self.cfg), dtypes=False)
        key = None if deterministic else _example_keys(_typed(self.make_rng("dropout")), inputs)
        return self.apply_fn(self.cfg, params, inputs, key=key)


def to_linen(module: Model, cfg: Any) -> LinenModel:
    """The model as a linen module whose "params" collection is the zoo's own nested dict.

    ``net.init(key, inputs)`` draws it by ``module.init``; ``net.apply({"params": params}, inputs)`` equals
    ``module.apply(cfg, params, inputs)``.  Training: ``net.apply(..., deterministic=False, rngs={"dropout": key})``; example
    ``row`` then uses ``fold_in(key of this module, row)``.
    """
    return LinenModel(module.init, module.apply, cfg)


class NnxModel(nnx.Module):
    """A model of the zoo as an nnx module, made by ``to_nnx``.  ``params``: the zoo's nested dict, of ``nnx.Param``."""

    def __init__(self, apply_fn: Callable[..., Any], cfg: Any, params: Params, dropout: nnx.RngStream | None) -> None:
        """dropout: the stream that training draws from, or None."""
        self.apply_fn = apply_fn
        self.cfg = cfg
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.dropout = nnx.data(dropout)
        self.deterministic = True

    def __call__(self, inputs: Any, *, deterministic: bool | None = None, rngs: nnx.Rngs | None = None) -> Any:
        """Inputs [batch, ...] -> what the model's ``apply`` returns.

        deterministic: None is what ``train()`` and ``eval()`` set last.
        rngs: draws from its stream "dropout" instead of the model's own.
        Raises ValueError when it has to draw and there is no stream.
        """
        if self.deterministic if deterministic is None else deterministic:
            return self.apply_fn(self.cfg, self.to_params(), inputs)
        stream = self.dropout if rngs is None else rngs["dropout"]
        if stream is None:
            raise ValueError("rngs=None, allowed when not deterministic: nnx.Rngs, given to to_nnx or to this call")
        return self.apply_fn(self.cfg, self.to_params(), inputs, key=_example_keys(stream(), inputs))

    def to_params(self) -> Params:
        """The zoo's parameters: nested dicts of arrays.  Differentiable, for ``module.loss(cfg, net.to_params(), batch)``."""
        return jax.tree.map(lambda leaf: leaf.get_value(), self.params, is_leaf=lambda node: isinstance(node, nnx.Variable))


def to_nnx(module: Model, cfg: Any, *, params: Params | None = None, rngs: nnx.Rngs | None = None) -> NnxModel:
    """The model as an nnx module with these parameters, or with new ones drawn by ``module.init`` from ``rngs.params()``.

    As everywhere in the zoo it is deterministic until told otherwise: ``net.train()`` turns dropout on, ``net.eval()`` off.
    rngs: its stream "dropout", if there is one, is forked for training; example ``row`` uses ``fold_in(stream(), row)``.
    Raises ValueError without params and rngs, and naming every parameter that is missing, unknown or of another shape.
    """
    if params is None:
        if rngs is None:
            raise ValueError("params=None and rngs=None, allowed: parameters, or nnx.Rngs to draw them from")
        params = module.init(cfg, rngs["params"]())
    require_fit("params", params, shapes_of(module.init, cfg), dtypes=False)
    dropout = rngs["dropout"].fork() if rngs is not None and ("dropout" in rngs or "default" in rngs) else None
    return NnxModel(module.apply, cfg, params, dropout)


def save_safetensors(path: str | PathLike[str], params: Params, cfg: Any = None) -> None:
    """Writes parameters, leaf names joined with ".": "layer_0.kernel".  Every type in ``DTYPES`` comes back exactly.

    cfg: the model's Config, kept in the file's metadata for ``load_config``; the parameters must then fit it.
    Raises ValueError naming what a file cannot hold: a name that is empty, has a dot or is no string, a node that is
    neither a dict nor an array, an empty dict, another type.
    """
    metadata = None
    if cfg is not None:
        name = next((name for name, module in MODELS.items() if type(cfg) is module.Config), None)
        if name is None:
            raise ValueError(f"cfg={cfg!r}, allowed: the Config of one of {', '.join(MODELS)}")
        require_fit("params", params, shapes_of(MODELS[name].init, cfg), dtypes=False)
        metadata = {"model": name, "config": json.dumps(_converter.unstructure(cfg))}
    tensors = {}
    for keys, leaf in _leaves(params):
        if not keys or not all(isinstance(key, str) and key and "." not in key for key in keys) or keys == ("__metadata__",):
            raise ValueError(f"params: name {keys}, allowed: a path of strings, not empty, without dots, not '__metadata__'")
        kind = str(getattr(leaf, "dtype", repr(leaf)))
        if kind not in DTYPES:
            raise ValueError(f"params: {'.'.join(keys)} is {kind}, allowed: arrays, in dicts, of {', '.join(DTYPES)}")
        tensors[".".join(keys)] = np.asarray(leaf, order="C")
    safetensors.numpy.save_file(tensors, path, metadata)


def load_safetensors(path: str | PathLike[str], like: Any = None) -> Params:
    """Reads parameters as nested dicts of arrays, the dots in the names of leaves being the nesting.

    like: parameters (or their shapes: ``jax.eval_shape(module.init, cfg, key)``) whose names, shapes and types they must have.
    Raises ValueError naming the file and every leaf that is missing, unknown, of another shape or type; or one that JAX
    cannot hold (64 bits without ``jax_enable_x64``); FileNotFoundError.
    """
    arrays: dict[str, Array] = {}
    with open_safetensors(path) as file:
        for name in file.keys():  # noqa: SIM118 -- not a dict
            try:
                value = file.get_tensor(name)
            except Exception as error:  # numpy has not every type that a file may announce
                raise ValueError(f"{path}: {name}: unreadable: {error}; types allowed: {', '.join(DTYPES)}") from error
            arrays[name] = jnp.array(value)
            if arrays[name].dtype != value.dtype:
                raise ValueError(f"{path}: {name} has type {value.dtype}, which needs jax_enable_x64")
    for name in arrays:
        if clash := next((other for other in arrays if other.startswith(name + ".")), None):
            raise ValueError(f"{path}: {name} is an array, and a dict in {clash}")
    params = unflatten_dict(arrays, sep=".")
    if like is not None:
        require_fit(str(path), params, like, dtypes=True)
    return params


def load_config(path: str | PathLike[str]) -> tuple[Model, Any]:
    """The module and Config of a file that ``save_safetensors`` wrote with ``cfg``.

    Raises ValueError naming the file if it has none, or one that is no model of ours; FileNotFoundError.
    """
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
    if metadata.get("model") not in MODELS:
        raise ValueError(f"{path}: model {metadata.get('model')!r} in its metadata, allowed: one of {', '.join(MODELS)}")
    module = MODELS[metadata["model"]]
    try:
        return module, _converter.structure(json.loads(metadata["config"]), module.Config)
    except Exception as error:  # whatever is wrong with text from outside
        raise ValueError(f"{path}: config in its metadata: {type(error).__name__}: {error}") from error


def export(
    module: Model, cfg: Any, *, params: Params | None = None, platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
) -> jax.export.Exported:
    """The deterministic model as an artefact that runs without this package, on any batch size, on ``platforms``.

    ``data = export(...).serialize()`` gives bytes; elsewhere ``jax.export.deserialize(data).call(inputs)`` runs them.
    params: baked in; with None, of the types that ``module.init`` draws, they are an argument: ``.call(params, inputs)``.
    Shapes of inputs are those of ``example_batch``; only the batch axis is free.
    Raises ValueError for an unknown platform, and naming every parameter that is missing, unknown or of another shape.
    """
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms={platforms!r}, allowed: a tuple of {', '.join(map(repr, PLATFORMS))}")
    shapes = shapes_of(module.init, cfg)
    example = jax.eval_shape(partial(module.example_batch, cfg, batch_size=2), jax.random.key(0))["inputs"]
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), example)
    # The Config stays in the closure: as an argument, its pytree type would have to be known where the artefact is loaded.
    if params is None:
        run = jax.jit(lambda params, inputs: module.apply(cfg, params, inputs))
        return jax.export.export(run, platforms=platforms)(shapes, inputs)
    require_fit("params", params, shapes, dtypes=False)
    arrays = jax.tree.map(jnp.asarray, params)  # numpy's cannot be indexed by what is traced
    run = jax.jit(lambda inputs: module.apply(cfg, arrays, inputs))
    return jax.export.export(run, platforms=platforms)(inputs)


def open_safetensors(path: str | PathLike[str]) -> Any:
    """A file that can be asked for its names and tensors.  Raises ValueError naming it if it is none; FileNotFoundError."""
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def shapes_of(init: Callable[..., Params], cfg: Any) -> Params:
    """Shapes and types of the parameters that ``init(cfg, key)`` draws."""
    return jax.eval_shape(partial(init, cfg), jax.random.key(0))


def _typed(key: Array) -> Array:
    """Keys of linen's users may still be raw; the zoo's are typed."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _example_keys(key: Array, inputs: Any) -> Array:
    """Keys [batch], one for each example, by the same rule as the trainer's."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(jax.tree.leaves(inputs)[0].shape[0]))


def _leaves(tree: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The keys down to every node that is no dict, and that node; an empty dict counts as one, or it would be lost."""
    if not isinstance(tree, dict) or (keys and not tree):
        yield keys, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, (*keys, key))


def require_fit(where: str, params: Any, like: Any, *, dtypes: bool) -> None:
    """Raises ValueError naming every leaf of ``params`` that is missing, unknown, or unlike that of ``like``."""
    have, want = ({".".join(map(str, keys)): leaf for keys, leaf in _leaves(tree)} for tree in (params, like))
    faults = [f"{name} is missing" for name in want if name not in have]
    faults += [f"{name} is unknown" for name in have if name not in want]
    for what in ("shape", "dtype") if dtypes else ("shape",):
        pairs = [(name, getattr(have[name], what, None), getattr(want[name], what, None)) for name in want if name in have]
        faults += [f"{name} has {what} {value}, expected {expected}" for name, value, expected in pairs if value != expected]
    if faults:
        rest = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise ValueError(f"{where}: " + "; ".join(faults[:10] + rest))
