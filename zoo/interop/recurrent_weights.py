"""Weights of a layer of ``zoo.parts.recurrence`` to and from flax linen and torch.

    params = recurrent_weights.from_torch("lstm", torch.nn.LSTM(8, 128).state_dict())
    # for flax.linen.OptimizedLSTMCell or LSTMCell
    variables = {"params": recurrent_weights.to_flax("lstm", params)}

flax: OptimizedLSTMCell, LSTMCell, GRUCell, SimpleCell.
torch: nn.LSTM, nn.GRU, nn.RNN, and nn.LSTMCell, nn.GRUCell, nn.RNNCell, whose names have no layer.
Neither library needs to be installed.
An LSTM's carry is (c, h) in flax, (h, c) in torch, and one array of h and c side by side here.
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
"""flax's letters for the gates, in the order of the zoo and torch."""


def to_flax(cell: Cell, params: Params) -> Params:
    """linen's parameters of a cell: kernels [in, units] and biases [units] of "ii", "hi", ..."""
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
    """The inverse of ``to_flax``.  Raises ValueError if names are missing or unknown."""
    require_one_of("cell", cell, CELLS)
    gates = FLAX_GATES[cell]
    _require_names(cell, variables, {f"{side}{gate}" for side in "ih" for gate in gates})
    bias_side = "h" if cell == "lstm" else "i"
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
                [jnp.asarray(variables[f"{bias_side}{gate}"]["bias"]) for gate in gates]
            ),
        },
        "recurrent": recurrent,
    }


def to_torch(
    cell: Cell, params: Params, layer: int | None = 0, *, reverse: bool = False
) -> dict[str, np.ndarray]:
    """torch's tensors of one layer and direction: "weight_ih_l0" [gates * units, in], ...

    torch has two biases; the first is the zoo's, the second zero except for a GRU's candidate.
    layer: None gives the names of a cell: "weight_ih", ...
    """
    require_one_of("cell", cell, CELLS)
    suffix = _suffix(layer, reverse)
    bias = np.asarray(params["input"]["bias"])
    second_bias = np.zeros_like(bias)
    if cell == "gru":
        second_bias[-len(bias) // 3 :] = np.asarray(params["recurrent"]["bias"])
    return {
        f"weight_ih{suffix}": np.ascontiguousarray(np.asarray(params["input"]["kernel"]).T),
        f"weight_hh{suffix}": np.ascontiguousarray(np.asarray(params["recurrent"]["kernel"]).T),
        f"bias_ih{suffix}": bias,
        f"bias_hh{suffix}": second_bias,
    }


def from_torch(
    cell: Cell, tensors: Mapping[str, Any], layer: int | None = 0, *, reverse: bool = False
) -> Params:
    """One layer and direction of a torch state dict, with torch or NumPy tensors.

    torch's two biases are added, except for a GRU's candidate; missing ones (bias=False) are zero.
    The state dict of a cell is recognised by its names, which have no layer; ``layer=None`` accepts
    only such a state dict.
    Raises ValueError naming missing tensors, and for the shapes of another cell.
    """
    require_one_of("cell", cell, CELLS)
    suffix = _suffix(layer, reverse)
    if "weight_ih" in tensors and not (layer or reverse):
        suffix = ""
    weights = {
        name: np.asarray(tensors[name])
        for name in (f"weight_ih{suffix}", f"weight_hh{suffix}")
        if name in tensors
    }
    if len(weights) < 2:
        raise ValueError(
            f"tensors: {', '.join(tensors)}; expected weight_ih{suffix} and weight_hh{suffix}"
        )
    kernel, recurrent = (weight.T for weight in weights.values())
    units, gates = recurrent.shape[0], len(GATES[cell])
    if recurrent.shape[1] != gates * units:
        raise ValueError(
            f"weight_hh{suffix}: shape {recurrent.T.shape}, "
            f"expected [{gates} * units, units] for cell={cell!r}"
        )
    require_shape(f"weight_ih{suffix}", kernel.T, (gates * units, "inputs"))
    zeros = np.zeros(gates * units, kernel.dtype)
    bias, second_bias = (
        np.asarray(tensors.get(f"{name}{suffix}", zeros)) for name in ("bias_ih", "bias_hh")
    )
    for name, array in (("bias_ih", bias), ("bias_hh", second_bias)):
        require_shape(f"{name}{suffix}", array, (gates * units,))
    if cell == "gru":  # the candidate's second bias is multiplied by the reset gate: kept separate
        shared = np.concatenate([second_bias[: 2 * units], np.zeros_like(second_bias[2 * units :])])
        recurrent_bias = {"bias": jnp.asarray(second_bias[2 * units :])}
    else:
        shared, recurrent_bias = second_bias, {}
    return {
        "input": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias + shared)},
        "recurrent": {"kernel": jnp.asarray(recurrent), **recurrent_bias},
    }


def _suffix(layer: int | None, reverse: bool) -> str:
    if layer is None:
        require_one_of("reverse", reverse, (False,))  # a cell has no direction
        return ""
    require_integer("layer", layer, at_least=0)
    return f"_l{layer}" + ("_reverse" if reverse else "")


def _require_names(cell: Cell, variables: Mapping[str, Any], expected: set[str]) -> None:
    if set(variables) != expected:
        raise ValueError(
            f"variables: {', '.join(sorted(variables))}; "
            f"expected {', '.join(sorted(expected))} for cell={cell!r}"
        )
