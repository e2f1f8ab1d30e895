"""Any model of the zoo as a flax module, linen or nnx.

    from zoo import interop

    net = interop.to_linen(mlp, cfg)                      # net.apply({"params": params}, images)
    net = interop.to_nnx(mlp, cfg, params=params)         # net(images)

Parameters remain nested dicts of arrays with the same names, so the zoo can use them unchanged.
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

    Its fields are functions instead of the model's module, so that it can be copied and pickled.
    """

    init_fn: Callable[..., Params]
    apply_fn: Callable[..., Any]
    cfg: Any

    @linen.compact
    def __call__(self, inputs: Any, *, deterministic: bool = True) -> Any:
        """Inputs [batch, ...] -> the result of the model's ``apply``.

        deterministic: if False, dropout uses the rng "dropout".
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
    """The model as a linen module; its "params" collection is the zoo's nested dict.

    ``net.init(key, inputs)`` draws the parameters by ``module.init``;
    ``net.apply({"params": params}, inputs)`` equals ``module.apply(cfg, params, inputs)``.
    Training: ``net.apply(..., deterministic=False, rngs={"dropout": key})``; example ``row`` then
    uses ``fold_in(key of this module, row)``.
    """
    return LinenModel(module.init, module.apply, cfg)


class NnxModel(nnx.Module):
    """A model of the zoo as an nnx module, made by ``to_nnx``.

    ``params``: the zoo's nested dict, with ``nnx.Param`` leaves.
    """

    def __init__(
        self, apply_fn: Callable[..., Any], cfg: Any, params: Params, dropout: nnx.RngStream | None
    ) -> None:
        """dropout: the random stream for training, or None."""
        self.apply_fn = apply_fn
        self.cfg = cfg
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.dropout = nnx.data(dropout)
        self.deterministic = True

    def __call__(
        self, inputs: Any, *, deterministic: bool | None = None, rngs: nnx.Rngs | None = None
    ) -> Any:
        """Inputs [batch, ...] -> the result of the model's ``apply``.

        deterministic: by default the mode that ``train()`` or ``eval()`` has set.
        rngs: its stream "dropout" is used instead of the model's own.
        Raises ValueError if it is not deterministic and has no stream.
        """
        if self.deterministic if deterministic is None else deterministic:
            return self.apply_fn(self.cfg, self.to_params(), inputs)
        stream = self.dropout if rngs is None else rngs["dropout"]
        if stream is None:
            raise ValueError(
                "rngs=None, allowed when not deterministic: "
                "nnx.Rngs, given to to_nnx or to this call"
            )
        return self.apply_fn(
            self.cfg, self.to_params(), inputs, key=_example_keys(stream(), inputs)
        )

    def to_params(self) -> Params:
        """The zoo's parameters: nested dicts of arrays.

        Differentiable, so that ``module.loss(cfg, net.to_params(), batch)`` has gradients.
        """
        return jax.tree.map(
            lambda leaf: leaf.get_value(),
            self.params,
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )


def to_nnx(
    module: Model, cfg: Any, *, params: Params | None = None, rngs: nnx.Rngs | None = None
) -> NnxModel:
    """The model as an nnx module.

    It is deterministic by default: ``net.train()`` turns dropout on, ``net.eval()`` off.
    params: by default drawn by ``module.init`` from ``rngs.params()``.
    rngs: its stream "dropout", if any, is forked for training; example ``row`` uses
    ``fold_in(stream(), row)``.
    Raises ValueError if both params and rngs are None, and one naming every parameter that is
    missing, unknown or of another shape.
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
    """A typed key, as the zoo needs; users of linen may pass raw ones."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _example_keys(key: Array, inputs: Any) -> Array:
    """Keys [batch], one per example, derived as in the trainer."""
    return jax.vmap(jax.random.fold_in, (None, 0))(
        key, jnp.arange(jax.tree.leaves(inputs)[0].shape[0])
    )
