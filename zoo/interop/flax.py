"""Any model of the zoo as a flax module, linen or nnx.

    from zoo import interop

    net = interop.to_linen(mlp, cfg)                      # net.apply({"params": params}, images)
    net = interop.to_nnx(mlp, cfg, params=params)         # net(images)

Parameters stay nested dicts of arrays with the same names, so going back is taking them out again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import unfreeze
from jax import Array

from zoo.base import Model, Params
from zoo.interop.shapes import require_fit, shapes_of


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

    def __init__(
        self, apply_fn: Callable[..., Any], cfg: Any, params: Params, dropout: nnx.RngStream | None
    ) -> None:
        """dropout: the stream that training draws from, or None."""
        self.apply_fn = apply_fn
        self.cfg = cfg
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.dropout = nnx.data(dropout)
        self.deterministic = True

    def __call__(
        self, inputs: Any, *, deterministic: bool | None = None, rngs: nnx.Rngs | None = None
    ) -> Any:
        """Inputs [batch, ...] -> what the model's ``apply`` returns.

        deterministic: None is what ``train()`` and ``eval()`` set last.
        rngs: draws from its stream "dropout" instead of the model's own.
        Raises ValueError when it has to draw and there is no stream.
        """
        if self.deterministic if deterministic is None else deterministic:
            return self.apply_fn(self.cfg, self.to_params(), inputs)
        stream = self.dropout if rngs is None else rngs["dropout"]
        if stream is None:
            raise ValueError(
                "rngs=None, allowed when not deterministic: nnx.Rngs, given to to_nnx or to this call"
            )
        return self.apply_fn(
            self.cfg, self.to_params(), inputs, key=_example_keys(stream(), inputs)
        )

    def to_params(self) -> Params:
        """The zoo's parameters: nested dicts of arrays.  Differentiable, for ``module.loss(cfg, net.to_params(), batch)``."""
        return jax.tree.map(
            lambda leaf: leaf.get_value(),
            self.params,
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )


def to_nnx(
    module: Model, cfg: Any, *, params: Params | None = None, rngs: nnx.Rngs | None = None
) -> NnxModel:
    """The model as an nnx module with these parameters, or with new ones drawn by ``module.init`` from ``rngs.params()``.

    As everywhere in the zoo it is deterministic until told otherwise: ``net.train()`` turns dropout on, ``net.eval()`` off.
    rngs: its stream "dropout", if there is one, is forked for training; example ``row`` uses ``fold_in(stream(), row)``.
    Raises ValueError without params and rngs, and naming every parameter that is missing, unknown or of another shape.
    """
    if params is None:
        if rngs is None:
            raise ValueError(
                "params=None and rngs=None, allowed: parameters, or nnx.Rngs to draw them from"
            )
        params = module.init(cfg, rngs["params"]())
    require_fit("params", params, shapes_of(module.init, cfg), dtypes=False)
    dropout = (
        rngs["dropout"].fork()
        if rngs is not None and ("dropout" in rngs or "default" in rngs)
        else None
    )
    return NnxModel(module.apply, cfg, params, dropout)


def _typed(key: Array) -> Array:
    """Keys of linen's users may still be raw; the zoo's are typed."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _example_keys(key: Array, inputs: Any) -> Array:
    """Keys [batch], one for each example, by the same rule as the trainer's."""
    return jax.vmap(jax.random.fold_in, (None, 0))(
        key, jnp.arange(jax.tree.leaves(inputs)[0].shape[0])
    )
