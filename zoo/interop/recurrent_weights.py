"""Weights of one layer of ``zoo.parts.recurrence`` to and from flax linen's cells and torch's recurrent layers.

    params = recurrent_weights.from_torch("lstm", torch.nn.LSTM(8, 128).state_dict())
    variables = {"params": recurrent_weights.to_flax("lstm", params)}       # of flax.linen.OptimizedLSTMCell or LSTMCell

flax: OptimizedLSTMCell, LSTMCell, GRUCell, SimpleCell; torch: nn.LSTM, nn.GRU, nn.RNN, and nn.LSTMCell, nn.GRUCell, nn.RNNCell,
whose names have no layer.  Neither needs to be installed.
An LSTM's carry is (c, h) in flax, (h, c) in torch, and here one array of h and c side by side.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.base import Params
from zoo.parts.checking import require_integer, require_one_of, require_shape
from zoo.parts.recurrence import CELLS, GATES, Cell

FLAX_GATES: dict[Cell, tuple[str, ...]] = {
    "tanh": ("",),
    "relu": ("",),
    "lstm": tuple("ifgo"),
    "gru": tuple("rzn"),
}
"""flax's letters for our gates, in our order (and torch's)."""


def to_flax(cell: Cell, params: Params) -> Params:
    """linen's parameters of a cell: kernels "ii", "hi", ... [in, units] for each gate, and biases [units]."""
    require_one_of("cell", cell, CELLS)
    gates = FLAX_GATES[cell]
    kernels, recurrent, biases = (
        np.split(np.asarray(array), len(gates), axis=-1)
        for array in (
            params["input"]["kernel"],
            params["recurrent"]["kernel"],
            params["input"]["bias"],
        )
    )
    variables: Params = {}
    for gate, kernel, back, bias in zip(gates, kernels, recurrent, biases, strict=True):
        variables[f"i{gate}"], variables[f"h{gate}"] = (
            {"kernel": jnp.asarray(kernel)},
            {"kernel": jnp.asarray(back)},
        )
        variables[f"{'h' if cell == 'lstm' else 'i'}{gate}"]["bias"] = jnp.asarray(bias)
    if cell == "gru":
        variables["hn"]["bias"] = jnp.asarray(params["recurrent"]["bias"])
    return variables


def from_flax(cell: Cell, variables: Mapping[str, Any]) -> Params:
    """The inverse of ``to_flax``.  Raises ValueError naming what is missing or unknown."""
    require_one_of("cell", cell, CELLS)
    gates = FLAX_GATES[cell]
    _require_names(cell, variables, {f"{side}{gate}" for side in "ih" for gate in gates})
    own = "h" if cell == "lstm" else "i"
    recurrent = {
        "kernel": jnp.concatenate(
            [jnp.asarray(variables[f"h{gate}"]["kernel"]) for gate in gates], axis=1
        )
    }
    if cell == "gru":
        recurrent["bias"] = jnp.asarray(variables["hn"]["bias"])
    return {
        "input": {
            "kernel": jnp.concatenate(
                [jnp.asarray(variables[f"i{gate}"]["kernel"]) for gate in gates], axis=1
            ),
            "bias": jnp.concatenate(
                [jnp.asarray(variables[f"{own}{gate}"]["bias"]) for gate in gates]
            ),
        },
        "recurrent": recurrent,
    }


def to_torch(
    cell: Cell, params: Params, layer: int | None = 0, *, reverse: bool = False
) -> dict[str, np.ndarray]:
    """torch's tensors of one layer and direction: "weight_ih_l0" [gates * units, in], ...; of two biases ours is the first.

    layer: None for those of a cell: "weight_ih", ...
    """
    require_one_of("cell", cell, CELLS)
    suffix = _suffix(layer, reverse)
    bias = np.asarray(params["input"]["bias"])
    other = np.zeros_like(bias)
    if cell == "gru":
        other[-len(bias) // 3 :] = np.asarray(params["recurrent"]["bias"])
    return {
        f"weight_ih{suffix}": np.ascontiguousarray(np.asarray(params["input"]["kernel"]).T),
        f"weight_hh{suffix}": np.ascontiguousarray(np.asarray(params["recurrent"]["kernel"]).T),
        f"bias_ih{suffix}": bias,
        f"bias_hh{suffix}": other,
    }


def from_torch(
    cell: Cell, tensors: Mapping[str, Any], layer: int | None = 0, *, reverse: bool = False
) -> Params:
    """One layer and direction of torch's state dict (of torch or numpy); its two biases are added where ours is one.

    A cell's state dict is known by its names, which have no layer; ``layer=None`` takes nothing else.  What is made with
    bias=False has zeros.  Raises ValueError naming a tensor that is missing, and for another cell's shapes.
    """
    require_one_of("cell", cell, CELLS)
    suffix = _suffix(layer, reverse)
    if "weight_ih" in tensors and not (layer or reverse):
        suffix = ""
    found = {
        name: np.asarray(tensors[name])
        for name in (f"weight_ih{suffix}", f"weight_hh{suffix}")
        if name in tensors
    }
    if len(found) < 2:
        raise ValueError(
            f"tensors: {', '.join(tensors)}; expected weight_ih{suffix} and weight_hh{suffix}"
        )
    kernel, recurrent = (weight.T for weight in found.values())
    units, gates = recurrent.shape[0], len(GATES[cell])
    if recurrent.shape[1] != gates * units:
        raise ValueError(
            f"weight_hh{suffix}: shape {recurrent.T.shape}, expected [{gates} * units, units] for cell={cell!r}"
        )
    require_shape(f"weight_ih{suffix}", kernel.T, (gates * units, "inputs"))
    zeros = np.zeros(gates * units, kernel.dtype)
    bias, other = (
        np.asarray(tensors.get(f"{name}{suffix}", zeros)) for name in ("bias_ih", "bias_hh")
    )
    for name, each in (("bias_ih", bias), ("bias_hh", other)):
        require_shape(f"{name}{suffix}", each, (gates * units,))
    if cell == "gru":  # behind the reset gate the candidate's second bias is another one
        shared = np.concatenate([other[: 2 * units], np.zeros_like(other[2 * units :])])
        own = {"bias": jnp.asarray(other[2 * units :])}
    else:
        shared, own = other, {}
    return {
        "input": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias + shared)},
        "recurrent": {"kernel": jnp.asarray(recurrent), **own},
    }


def _suffix(layer: int | None, reverse: bool) -> str:
    if layer is None:
        require_one_of("reverse", reverse, (False,))  # a cell takes what it is given
        return ""
    require_integer("layer", layer, at_least=0)
    return f"_l{layer}" + ("_reverse" if reverse else "")


def _require_names(cell: Cell, variables: Mapping[str, Any], expected: set[str]) -> None:
    if set(variables) != expected:
        raise ValueError(
            f"variables: {', '.join(sorted(variables))}; expected {', '.join(sorted(expected))} for cell={cell!r}"
        )
