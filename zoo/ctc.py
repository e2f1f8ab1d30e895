"""Speech recognition from acoustics to labels: deep recurrent networks with CTC.

Graves, Mohamed, Hinton 2013 ("Speech recognition with deep recurrent neural networks", sections 2
and 3.1): bidirectional LSTM layers, each of which reads both directions of the one below, and a
softmax over the labels and a blank at every step.  ``zoo.parts.labelling`` states the loss.  The
LSTM has no peepholes, see ``zoo.parts.recurrence``.

A step reads ``stack`` consecutive frames, so that the network runs at a fraction of the frame rate.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding
from zoo.parts import acoustics, labelling, recurrent_layers
from zoo.parts.checking import require, require_shape
from zoo.parts.config import NonNegativeFloat, PositiveInt, Rate, at_least, static
from zoo.parts.layers import (
    ComputeDtype,
    Initializer,
    at_least_float32,
    dense,
    dropout,
    init_layer,
    split_keys,
)
from zoo.parts.recurrence import Cell

EXAMPLE_FRAMES, EXAMPLE_LABELS = 14, 3
"""Frames and labels of an example; models accept any number."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A recurrent network that is trained with CTC.

    features: values of a frame; training sets them to those of the data.
    vocabulary: labels, including the blank, label 0; training sets it too.
    units: of every layer and direction.
    stack: frames that one step reads.
    cell, forget_bias, remat, initializer, compute_dtype: see ``zoo.rnn``; "tanh" and "relu" are
        simple recurrent units.
    bidirectional: False for a network that can transcribe while someone is speaking.
    input_dropout, dropout: probability of dropping an input, or a layer's output, in training.
    """

    features: PositiveInt
    vocabulary: PositiveInt
    units: Annotated[tuple[int, ...], at_least(1)]
    stack: PositiveInt = 1
    cell: Cell = "lstm"
    bidirectional: bool = True
    input_dropout: Rate = 0.0
    dropout: Rate = 0.0
    forget_bias: NonNegativeFloat = 1.0
    remat: bool = False
    initializer: Initializer = "glorot_uniform"
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require(self.vocabulary >= 2, self, "vocabulary", "2 or more, the blank and a label")

    @property
    def layers(self) -> recurrent_layers.Config:
        """The recurrent layers."""
        return recurrent_layers.Config(
            units=self.units,
            cell=self.cell,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            forget_bias=self.forget_bias,
            initializer=self.initializer,
            remat=self.remat,
            compute_dtype=self.compute_dtype,
        )

    @property
    def input_range(self) -> None:
        """Allowed inputs: any."""
        return None

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss.  Label 0, the blank, is no target."""
        return Outputs("targets", Targets(self.vocabulary, least=1), likelihood=True, aligned=False)


def _graves(layers: int, units: int, **fields: Any) -> Config:
    # 40 filters and the energy with two deltas; 61 phones and the blank.
    return Config(features=123, vocabulary=62, units=(units,) * layers, **fields)


PRESETS: dict[str, Config] = {
    "tiny": Config(features=3, vocabulary=4, units=(4, 3), stack=2, dropout=0.1),
    # Graves et al. 2013, table 1: CTC-{1,2,3,5}l-250h and CTC-3l-421h-uni, on TIMIT.
    "graves_1": _graves(1, 250),
    "graves_2": _graves(2, 250),
    "graves_3": _graves(3, 250),
    "graves_5": _graves(5, 250),
    "graves_3_forward": _graves(3, 421, bidirectional=False),
    # AN4 at 25 steps a second.
    "an4": Config(
        features=40, vocabulary=29, units=(128,) * 3, stack=4, input_dropout=0.1, dropout=0.35
    ),
}


def init(cfg: Config, key: Array) -> Params:
    """{"layer_0": ..., "output": {"kernel" [units, vocabulary], "bias" [vocabulary]}}.

    Layers: see ``zoo.parts.recurrence``; the first has stack * features inputs.  A bidirectional
    layer has parameters for each direction, {"forward": ..., "backward": ...}.
    """
    *layers, last = jax.random.split(key, len(cfg.units) + 1)
    params = recurrent_layers.init(cfg.layers, layers, cfg.stack * cfg.features)
    size = cfg.units[-1] * (2 if cfg.bidirectional else 1)
    return params | {"output": init_layer(last, (size, cfg.vocabulary), cfg.initializer)}


def apply(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> Array:
    """Logits [batch, steps, vocabulary], at least float32, of which ``steps_of`` are valid.

    inputs: "frames" [batch, time, features], valid up to "lengths" [batch].
    """
    return _of_inputs(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Logits, and "hidden_0", ... [batch, steps, units], "logits", "outputs": probabilities."""
    logits, intermediates = _of_inputs(cfg, params, inputs, None)
    return logits, {**intermediates, "logits": logits, "outputs": jax.nn.softmax(logits)}


def steps_of(cfg: Config, lengths: Array) -> Array:
    """Steps of recordings with these numbers of frames; the last may have fewer than ``stack``."""
    return -(-lengths // cfg.stack)


def initial_carry(cfg: Config, params: Params, batch_size: Any) -> tuple[Array, ...]:
    """See ``zoo.rnn.initial_carry``; () for a bidirectional model."""
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
    """The carry after the frames ``inputs`` [batch, time, features], and logits [batch, steps, v].

    mask: [batch, time], False after the last frame of a row.  Steps without a frame leave the carry
        unchanged.  A recording in pieces has the same logits as a whole if the length of every
        piece but the last is a multiple of ``stack``.
    Raises ValueError for a bidirectional model with a carry other than ().
    """
    require(
        not (cfg.bidirectional and carry), cfg, "bidirectional", "False, to continue from a carry"
    )
    after, logits, _ = _forward(cfg, params, carry, inputs, mask, key)
    return () if cfg.bidirectional else after, logits


def step(
    cfg: Config, params: Params, carry: tuple[Array, ...], inputs: Array
) -> tuple[tuple[Array, ...], Array]:
    """One step of ``stack`` frames [batch, stack, features]: the carry, and logits [batch, v].

    Raises ValueError for a bidirectional model, which needs the whole recording first.
    """
    if cfg.bidirectional:
        require(False, cfg, "bidirectional", "False, to compute single steps")
    require_shape("inputs", inputs, ("batch", cfg.stack, cfg.features))
    after, x = recurrent_layers.step(cfg.layers, params, carry, inputs.reshape(len(inputs), -1))
    return after, at_least_float32(dense(params["output"], x, cfg.compute_dtype))


def _of_inputs(
    cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None
) -> tuple[Array, dict[str, Array]]:
    """Logits and intermediates of whole recordings."""
    frames, lengths = inputs["frames"], inputs["lengths"]
    require_shape("lengths", lengths, frames.shape[:1])
    mask = jnp.arange(frames.shape[1])[None] < lengths[:, None]
    carry = initial_carry(cfg, params, len(frames))
    return _forward(cfg, params, carry, frames, mask, key)[1:]


def _forward(
    cfg: Config,
    params: Params,
    carry: tuple[Array, ...],
    frames: Array,
    mask: Array | None,
    key: Array | None,
) -> tuple[tuple[Array, ...], Array, dict[str, Array]]:
    """The carry after all steps, the logits, and the intermediates of ``trace``."""
    require_shape("frames", frames, ("batch", "time", cfg.features))
    frames = frames.astype(params["output"]["kernel"].dtype)
    steps = None
    if mask is not None:
        require_shape("mask", mask, frames.shape[:2])
        # The last step of a row may contain frames after its end.
        frames = jnp.where(mask[..., None], frames, 0)
        steps = mask[:, :: cfg.stack]
    x, keys = acoustics.stack(frames, cfg.stack), split_keys(key, len(cfg.units) + 1)
    x = dropout(x, cfg.input_dropout, keys[0])
    after, x, _, intermediates = recurrent_layers.unroll(
        cfg.layers, params, carry, x, steps, keys[1:-1]
    )
    logits = at_least_float32(
        dense(params["output"], dropout(x, cfg.dropout, keys[-1]), cfg.compute_dtype)
    )
    return after, logits, intermediates


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """-log p of each labelling in nats, summed; the items are labels.

    Recordings with fewer steps than their labels need have no loss: metric "unaligned" is their
    share.  At key=None also "label_error", the edit distance from the labels of the best path to
    the targets, per target.
    batch: inputs: see ``apply``; targets [batch, most] labels, 1 or more; mask [batch, most], True
        for the first labels of a row, or [batch] if all rows have as many.
    """
    batch, _ = blank_padding(batch)
    inputs, labels, mask = batch["inputs"], batch["targets"], batch["mask"]
    if labels.ndim != 2 or mask.shape not in (labels.shape, labels.shape[:1]):
        raise ValueError(
            f"targets: shape {labels.shape}, mask: shape {mask.shape}, "
            "expected [batch, most] for both"
        )
    rows = mask if mask.ndim == 1 else jnp.any(mask, axis=1)
    counts = jnp.sum(jnp.broadcast_to(mask.reshape(len(mask), -1), labels.shape), axis=1)
    steps = jnp.where(rows, steps_of(cfg, inputs["lengths"]), 0)
    logits = apply(cfg, params, inputs, key=key)
    aligned = labelling.fits(steps, labels, counts)
    items = jnp.sum(jnp.where(aligned, counts, 0))
    total = jnp.sum(labelling.loss(logits, steps, labels, counts))
    metrics = {"unaligned": (jnp.sum(rows & ~aligned), jnp.sum(rows))}
    if key is None:
        found = labelling.best_path(logits, steps)
        errors = labelling.edit_distance(*found, labels, counts)
        metrics["label_error"] = (jnp.sum(errors), jnp.sum(counts))
    return total, Aux(items, metrics, carry)


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Normal frames and random labels; recordings and labellings have different lengths."""
    keys = jax.random.split(key, 4)
    counts = jax.random.randint(keys[0], (batch_size, 1), 1, EXAMPLE_LABELS + 1)
    frames = EXAMPLE_FRAMES * cfg.stack // 2
    return {
        "inputs": {
            "frames": jax.random.normal(keys[1], (batch_size, frames, cfg.features)),
            "lengths": jax.random.randint(keys[2], (batch_size,), frames - cfg.stack, frames + 1),
        },
        "targets": jax.random.randint(keys[3], (batch_size, EXAMPLE_LABELS), 1, cfg.vocabulary),
        "mask": jnp.arange(EXAMPLE_LABELS)[None] < counts,
    }
