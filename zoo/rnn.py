"""Recurrent networks: tanh or ReLU units, LSTM, GRU; in layers, and in both directions (LeCun, Bengio, Hinton 2015, figure 5).

``zoo.parts.recurrence`` has their equations and computes them.  Sequences are as long as they are; a mask says where they
end, and ``unroll`` and ``step`` continue from a carry, so that training by pieces (truncated backpropagation through time),
streaming and generation are one definition.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, blank_padding, restart
from zoo.parts import recurrent_layers
from zoo.parts.checking import require, require_shape
from zoo.parts.config import NonNegativeFloat, PositiveInt, Rate, at_least, static
from zoo.parts.layers import (
    ComputeDtype,
    Initializer,
    Objective,
    Output,
    at_least_float32,
    dense,
    dropout,
    init_layer,
    mask_of_steps,
    output_activation,
    require_objective,
    split_keys,
    supervised_loss,
    supervised_outputs,
)

Unit = Literal["rnn", "lstm", "gru"]
ReadOut = Literal["each", "last"]
EXAMPLE_STEPS = 8
"""Time steps of ``example_batch``; a model takes any number."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A recurrent network.

    inputs: values of each time step.
    units: of every recurrent layer.
    output_units: of every step, or of a sequence.
    cell: rnn, lstm or gru.
    activation: nonlinearity of rnn units, tanh or relu; the others have their own.
    bidirectional: each layer also reads the sequence from its end; the outputs of both directions lie side by side.
    read_out: each reads the outputs off every step; last off the state after the last unmasked step (of both directions: after
        the last they read).
    output: what the output units are.
    objective: cross_entropy or squared_error (1/2 sum of squares); None is the natural one: cross-entropy
        for softmax and logistic outputs, squared error for linear ones.
    input_dropout, dropout: probability that an input, a layer's output is dropped while training, at each step anew; the
        recurrent connections keep theirs (Zaremba et al. 2014).
    forget_bias: of an LSTM's forget gates at the beginning.
    remat: memory for about sqrt(time) steps instead of for all, for the gradient; takes another forward pass.
    initializer: how input and output kernels are drawn; recurrent ones are orthogonal.
    compute_dtype: None computes in the parameters' type; "bfloat16" halves the precision of matrix products, not of states.
    """

    inputs: PositiveInt
    units: Annotated[tuple[int, ...], at_least(1)]
    output_units: PositiveInt
    cell: Unit = "lstm"
    activation: Literal["tanh", "relu"] = "tanh"
    bidirectional: bool = False
    read_out: ReadOut = "each"
    output: Output = "softmax"
    objective: Objective | None = None
    input_dropout: Rate = 0.0
    dropout: Rate = 0.0
    forget_bias: NonNegativeFloat = 1.0
    remat: bool = False
    initializer: Initializer = "glorot_uniform"
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require(
            self.cell == "rnn" or self.activation == "tanh",
            self,
            "activation",
            "'tanh' unless cell is 'rnn'",
        )
        require_objective(self, self.output, self.objective)

    @property
    def layers(self) -> recurrent_layers.Config:
        """The recurrent layers."""
        return recurrent_layers.Config(
            units=self.units,
            cell=self.activation if self.cell == "rnn" else self.cell,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            forget_bias=self.forget_bias,
            initializer=self.initializer,
            remat=self.remat,
            compute_dtype=self.compute_dtype,
        )

    @property
    def carries(self) -> bool:
        """Whether a batch may continue the one before: not when sequences are read backward, or whole."""
        return self.read_out == "each" and not self.bidirectional

    @property
    def input_range(self) -> None:
        """What inputs must lie in: anything."""
        return None

    @property
    def outputs(self) -> Outputs:
        """What the outputs are, and the loss."""
        return supervised_outputs(self.output, self.objective, self.output_units)


def _adding(cell: Unit) -> Config:
    """For the adding problem (Hochreiter and Schmidhuber 1997, section 5.4): the sum of two marked ones of many numbers."""
    return Config(
        inputs=2, units=(64,), output_units=1, cell=cell, read_out="last", output="linear"
    )


PRESETS: dict[str, Config] = {
    "tiny": Config(inputs=3, units=(8,), output_units=3, dropout=0.1),
    "adding_rnn": _adding("rnn"),
    "adding_lstm": _adding("lstm"),
    "adding_gru": _adding("gru"),
    # An 8x8 image as the sequence of its rows.
    "digits": Config(inputs=8, units=(128,), output_units=10, read_out="last", dropout=0.5),
}


def init(cfg: Config, key: Array) -> Params:
    """{"layer_0": parameters of ``zoo.parts.recurrence``, ..., "output": {"kernel" [units, outputs], "bias" [outputs]}}.

    A bidirectional layer has those of its two directions, {"forward": ..., "backward": ...}.
    """
    *layers, last = jax.random.split(key, len(cfg.units) + 1)
    params = recurrent_layers.init(cfg.layers, layers, cfg.inputs)
    size = cfg.units[-1] * (2 if cfg.bidirectional else 1)
    return params | {"output": init_layer(last, (size, cfg.output_units), cfg.initializer)}


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """``unroll`` from the initial state, all steps valid: logits [batch, time, outputs], or [batch, outputs] off the last."""
    return unroll(cfg, params, initial_carry(cfg, params, inputs.shape[0]), inputs, key=key)[1]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and "hidden_0", ... [batch, time, units], "logits", "outputs" (probabilities unless the outputs are linear).

    Gates and cells go by ``zoo.parts.recurrence.GATES``, direction and layer: "forget_0", "cell_0", "backward_update_1".
    """
    _, logits, seen = _forward(
        cfg, params, initial_carry(cfg, params, inputs.shape[0]), inputs, None, None, gates=True
    )
    return logits, seen


def initial_carry(cfg: Config, params: Params, batch_size: Any) -> tuple[Array, ...]:
    """Zeros for each layer, [batch, units] or an LSTM's h and c side by side; () for a bidirectional model.

    batch_size: an integer, or symbolic while exporting.
    """
    return recurrent_layers.initial_carry(cfg.layers, params, batch_size)


def unroll(
    cfg: Config,
    params: Params,
    carry: tuple[Array, ...],
    inputs: Array,
    *,
    key: Array | None = None,
    mask: Array | None = None,
) -> tuple[tuple[Array, ...], Array]:
    """All steps of inputs [batch, time, ...] of ``cfg.inputs`` values each (an image is a sequence of rows) from ``carry``.

    Returns the carry after them, and logits [batch, time, outputs] or, for read_out="last", [batch, outputs]; at least float32.
    mask: [batch, time], False where there is no step; it leaves the carry as it is, and its logits mean nothing.
    Raises ValueError for a bidirectional model and another carry than (): its layers begin anew in both directions.
    """
    require(not (cfg.bidirectional and carry), cfg, "bidirectional", "False, to go on from a carry")
    return _forward(cfg, params, carry, inputs, mask, key)[:2]


def step(
    cfg: Config, params: Params, carry: tuple[Array, ...], inputs: Array
) -> tuple[tuple[Array, ...], Array]:
    """One step of inputs [batch, inputs]: the carry after it, and logits [batch, outputs].

    Raises ValueError for a bidirectional model, which has to see a sequence's end first.
    """
    if cfg.bidirectional:
        require(False, cfg, "bidirectional", "False, to go step by step")
    require_shape("inputs", inputs, ("batch", cfg.inputs))
    after, x = recurrent_layers.step(cfg.layers, params, carry, inputs)
    return after, at_least_float32(dense(params["output"], x, cfg.compute_dtype))


def _forward(
    cfg: Config,
    params: Params,
    carry: tuple[Array, ...],
    inputs: Array,
    mask: Array | None,
    key: Array | None,
    gates: bool = False,
) -> tuple[tuple[Array, ...], Array, dict[str, Array]]:
    """The carry after all steps, the logits, and what ``trace`` names; gates: with these."""
    if inputs.ndim < 3 or math.prod(inputs.shape[2:]) != cfg.inputs:
        raise ValueError(
            f"inputs: shape {inputs.shape}, expected [batch, time, ...] with inputs={cfg.inputs} values each"
        )
    if mask is not None:
        require_shape("mask", mask, inputs.shape[:2])
    x = inputs.reshape(*inputs.shape[:2], cfg.inputs).astype(params["output"]["kernel"].dtype)
    keys = split_keys(key, len(cfg.units) + 1)
    x = dropout(x, cfg.input_dropout, keys[0])
    after, x, last, seen = recurrent_layers.unroll(
        cfg.layers, params, carry, x, mask, keys[1:-1], gates=gates
    )
    if cfg.read_out == "each":
        x = dropout(x, cfg.dropout, keys[-1])
    read = x if cfg.read_out == "each" else dropout(last, cfg.dropout, keys[-1])
    flat = dense(params["output"], read.reshape(-1, read.shape[-1]), cfg.compute_dtype)
    logits = at_least_float32(flat).reshape(*read.shape[:-1], cfg.output_units)
    seen |= {"logits": logits, "outputs": output_activation(cfg.output, logits)}
    return () if cfg.bidirectional else after, logits, seen


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Summed loss over unmasked steps, or over sequences for read_out="last"; metric "accuracy" where targets are classes.

    batch: inputs [batch, time, ...]; mask [batch, time], or [batch] where all are equally long; targets [batch, time] (classes,
    integers) or [batch, time, outputs] (0/1 or real), for read_out="last" [batch] or [batch, outputs].  reset [batch]: rows that
    begin anew; the others go on from ``carry``, which is () or each layer's.  Without it, all begin anew.
    """
    batch, carry = blank_padding(batch, carry)
    inputs, targets, mask = batch["inputs"], batch["targets"], batch["mask"]
    rows, time = inputs.shape[:2]
    start = initial_carry(cfg, params, rows)
    start = restart(start, carry, batch) if cfg.carries else start
    steps = mask_of_steps(mask, (rows, time))
    last, logits = _forward(cfg, params, start, inputs, steps, key)[:2]
    if cfg.read_out == "last":
        items = jnp.any(steps, axis=1)
    else:
        classes = jnp.issubdtype(targets.dtype, jnp.integer)
        require_shape(
            "targets", targets, (rows, time) if classes else (rows, time, cfg.output_units)
        )
        logits, items, targets = (
            logits.reshape(-1, cfg.output_units),
            steps.reshape(-1),
            targets.reshape(-1, *targets.shape[2:]),
        )
    if targets.ndim == 2 and targets.shape[0] == items.shape[0]:
        targets = jnp.where(
            items[:, None], targets, 0
        )  # or padding that is NaN would be in the gradient, times zero
    total, aux = supervised_loss(
        cfg.output, cfg.objective, logits, {"targets": targets, "mask": items}
    )
    return total, aux._replace(carry=jax.lax.stop_gradient(last)) if cfg.carries else aux._replace(
        carry=carry
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[Array, ...]:
    """``initial_carry``, or () where batches are whole sequences: in both directions, or read off the last step."""
    return initial_carry(cfg, params, batch_size) if cfg.carries else ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Normal inputs [batch, EXAMPLE_STEPS, inputs], random classes, or normal targets for linear outputs.

    Sequences that are read off every step have different lengths, and where batches go on, every other one begins anew.
    """
    keys, shape = jax.random.split(key, 3), (batch_size, EXAMPLE_STEPS)
    items = shape if cfg.read_out == "each" else shape[:1]
    if cfg.output == "linear":
        targets = jax.random.normal(keys[1], (*items, cfg.output_units))
    else:
        targets = jax.random.randint(keys[1], items, 0, cfg.output_units)
    batch = {
        "inputs": jax.random.normal(keys[0], (*shape, cfg.inputs)),
        "targets": targets,
        "mask": jnp.ones(items, bool),
    }
    if cfg.read_out == "each":
        lengths = jax.random.randint(
            keys[2], (batch_size, 1), EXAMPLE_STEPS // 2, EXAMPLE_STEPS + 1
        )
        batch["mask"] = jnp.broadcast_to(jnp.arange(EXAMPLE_STEPS)[None] < lengths, shape)
    return batch | ({"reset": jnp.arange(batch_size) % 2 == 0} if cfg.carries else {})
