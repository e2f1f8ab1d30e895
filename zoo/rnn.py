"""Recurrent networks: simple (tanh or ReLU), LSTM, GRU; stacked, and optionally bidirectional.

LeCun, Bengio, Hinton 2015, figure 5.  ``zoo.parts.recurrence`` states and computes the equations.
Sequences may have any length; a mask marks their ends.  ``unroll`` and ``step`` continue from a
carry, so truncated backpropagation through time, streaming and generation share one definition.
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
"""Time steps of ``example_batch``; models accept any number."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A recurrent network.

    inputs: values per time step.
    units: of every recurrent layer.
    output_units: per step, or per sequence.
    cell: rnn, lstm or gru.
    activation: nonlinearity of rnn units, tanh or relu; lstm and gru have their own.
    bidirectional: each layer also reads the sequence backwards; the outputs of both directions are
        concatenated.
    read_out: each computes outputs at every step; last computes them from the state after the last
        unmasked step (for both directions, the last one that each reads).
    output: kind of output units.
    objective: cross_entropy or squared_error (1/2 sum of squares).  None selects the natural one:
        cross-entropy for softmax and logistic outputs, squared error for linear ones.
    input_dropout, dropout: probability of dropping an input, or a layer's output, in training,
        drawn anew at every step; recurrent connections are not dropped (Zaremba et al. 2014).
    forget_bias: initial bias of an LSTM's forget gates.
    remat: store about sqrt(time) steps instead of all for the gradient, at the cost of another
        forward pass.
    initializer: distribution of input and output kernels; recurrent ones are orthogonal.
    compute_dtype: None computes in the parameters' type; "bfloat16" halves the precision of matrix
        products, not of states.
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
        """Whether a batch may continue the one before.

        Not if sequences are read backwards, or have one output as a whole.
        """
        return self.read_out == "each" and not self.bidirectional

    @property
    def input_range(self) -> None:
        """Allowed inputs: any."""
        return None

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return supervised_outputs(self.output, self.objective, self.output_units)


def _adding(cell: Unit) -> Config:
    """The adding problem (Hochreiter and Schmidhuber 1997, section 5.4).

    The target is the sum of two marked numbers in a long sequence.
    """
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
    """{"layer_0": ..., "output": {"kernel" [units, outputs], "bias" [outputs]}}.

    Layers: see ``zoo.parts.recurrence``.  A bidirectional layer has parameters for each direction,
    {"forward": ..., "backward": ...}.
    """
    *layers, last = jax.random.split(key, len(cfg.units) + 1)
    params = recurrent_layers.init(cfg.layers, layers, cfg.inputs)
    size = cfg.units[-1] * (2 if cfg.bidirectional else 1)
    return params | {"output": init_layer(last, (size, cfg.output_units), cfg.initializer)}


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """``unroll`` from the initial state, with all steps valid.

    Returns logits [batch, time, outputs], or for read_out="last", [batch, outputs].
    """
    return unroll(cfg, params, initial_carry(cfg, params, inputs.shape[0]), inputs, key=key)[1]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and "hidden_0", ... [batch, time, units], "logits", "outputs".

    "outputs" are probabilities unless the outputs are linear.  Gates and cells are named by
    ``zoo.parts.recurrence.GATES``, direction and layer: "forget_0", "cell_0", "backward_update_1".
    """
    _, logits, intermediates = _forward(
        cfg, params, initial_carry(cfg, params, inputs.shape[0]), inputs, None, None, gates=True
    )
    return logits, intermediates


def initial_carry(cfg: Config, params: Params, batch_size: Any) -> tuple[Array, ...]:
    """Zeros for each layer: [batch, units], or an LSTM's h and c, concatenated.

    () for a bidirectional model.  batch_size: an integer, or symbolic for export.
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
    """The carry after all steps of ``inputs``, starting from ``carry``, and the logits.

    inputs: [batch, time, ...] with ``cfg.inputs`` values per step (an image is a sequence of rows).
    mask: [batch, time], False where there is no step.  Such steps leave the carry unchanged, and
        their logits are meaningless.
    Logits are [batch, time, outputs], or for read_out="last", [batch, outputs]; at least float32.
    Raises ValueError for a bidirectional model with a carry other than (): each direction starts at
    an end of the sequence.
    """
    require(
        not (cfg.bidirectional and carry), cfg, "bidirectional", "False, to continue from a carry"
    )
    return _forward(cfg, params, carry, inputs, mask, key)[:2]


def step(
    cfg: Config, params: Params, carry: tuple[Array, ...], inputs: Array
) -> tuple[tuple[Array, ...], Array]:
    """One step of inputs [batch, inputs]: the carry after it, and logits [batch, outputs].

    Raises ValueError for a bidirectional model, which needs the whole sequence first.
    """
    if cfg.bidirectional:
        require(False, cfg, "bidirectional", "False, to compute single steps")
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
    """The carry after all steps, the logits, and the intermediates of ``trace``.

    gates: include gates and cells.
    """
    if inputs.ndim < 3 or math.prod(inputs.shape[2:]) != cfg.inputs:
        raise ValueError(
            f"inputs: shape {inputs.shape}, "
            f"expected [batch, time, ...] with inputs={cfg.inputs} values each"
        )
    if mask is not None:
        require_shape("mask", mask, inputs.shape[:2])
    x = inputs.reshape(*inputs.shape[:2], cfg.inputs).astype(params["output"]["kernel"].dtype)
    keys = split_keys(key, len(cfg.units) + 1)
    x = dropout(x, cfg.input_dropout, keys[0])
    after, x, last, intermediates = recurrent_layers.unroll(
        cfg.layers, params, carry, x, mask, keys[1:-1], gates=gates
    )
    if cfg.read_out == "each":
        x = dropout(x, cfg.dropout, keys[-1])
    read = x if cfg.read_out == "each" else dropout(last, cfg.dropout, keys[-1])
    flat = dense(params["output"], read.reshape(-1, read.shape[-1]), cfg.compute_dtype)
    logits = at_least_float32(flat).reshape(*read.shape[:-1], cfg.output_units)
    intermediates |= {"logits": logits, "outputs": output_activation(cfg.output, logits)}
    return () if cfg.bidirectional else after, logits, intermediates


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Summed loss over unmasked steps, or over sequences for read_out="last".

    Metric "accuracy" if targets are classes.
    batch: inputs [batch, time, ...]; mask [batch, time], or [batch] if all sequences are equally
        long; targets [batch, time] (classes, integers) or [batch, time, outputs] (0/1 or real),
        without the time axis for read_out="last".  reset [batch]: True for rows that start a new
        sequence; the others continue from ``carry``, which is () or each layer's.  Without it, all
        start anew.
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
        # A NaN target in the padding would survive the mask in the gradient: NaN times zero is NaN.
        targets = jnp.where(items[:, None], targets, 0)
    total, aux = supervised_loss(
        cfg.output, cfg.objective, logits, {"targets": targets, "mask": items}
    )
    return total, aux._replace(carry=jax.lax.stop_gradient(last)) if cfg.carries else aux._replace(
        carry=carry
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[Array, ...]:
    """``initial_carry``, or () if batches do not continue each other.

    That is the case for bidirectional models and read_out="last".
    """
    return initial_carry(cfg, params, batch_size) if cfg.carries else ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Normal inputs [batch, EXAMPLE_STEPS, inputs] and random classes.

    For linear outputs, the targets are normal.  With outputs at every step, sequences have
    different lengths.  If batches continue each other, every other row starts a new sequence.
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
