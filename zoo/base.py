"""The contract that every model of the zoo follows.

A model is a module.  Its functions are pure and take a static ``Config`` first, so that ``jax.jit(mlp.apply)(cfg, params, x)``
just works: equal configs share one trace, and nothing needs ``static_argnums`` or a closure.

A *batch* is a dict of arrays whose leading axis is the example:

    inputs    what ``apply`` receives: an array, or a dict of arrays
    targets   what the objective compares with (absent where it is unsupervised)
    mask      bool, [batch] or [batch, time]: False marks padding, which reaches nothing whatever it holds.  Always present
    reset     bool, [batch], only where batches go on from one another: True restarts that row's carry before the batch

Every reduction is a *sum* over unmasked items, and the number of items goes with it.  Whoever holds all the parts of a batch
(micro-batches, devices, processes) adds them up and divides once, so ragged batches are exact and an all-padding shard
is never 0/0.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

Params = dict[str, Any]
"""Nested dict of arrays, with the field's usual leaf names (kernel, bias, embedding)."""
Batch = dict[str, Any]
Carry = Any
T = TypeVar("T")


class Aux(NamedTuple):
    """What ``loss`` returns beside its total.

    count: number of unmasked items that the total sums over.
    metrics: {name: (sum, count)}, each a scalar pair; the trainer adds up and divides.
    carry: what the objective hands to the next batch; () for most.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    metrics: dict[str, tuple[Array, Array]]
    carry: Carry = ()


class Targets(NamedTuple):
    """What the targets of a loss may be.

    units: outputs for each item; an integer for each item names one of them, its class.
    rows: what an item's numbers may be instead, one for each output: any finite "numbers", "probabilities" in 0..1, or a
        "distribution", probabilities that sum to 1.  None where only classes serve.
    """

    units: int
    rows: Literal["numbers", "probabilities", "distribution"] | None = None


class Outputs(NamedTuple):
    """What a model learns to put out, and in which unit its loss is.

    of: "targets": the outputs estimate the batch's targets.  "inputs": they reconstruct the inputs.
        "hidden": the loss reconstructs hidden units, as that of a greedy autoencoder with more than
        one pair of layers does.  "density": the model is an energy of the inputs.
    targets: what the targets may be; None for models without.
    likelihood: whether the loss of an item is -log p(its target), so that its unit is the nat.
    """

    of: Literal["targets", "inputs", "hidden", "density"]
    targets: Targets | None = None
    likelihood: bool = False


@runtime_checkable
class Model(Protocol):
    """The names of a model module, in order.  A module may add ``SAMPLED = True`` when its objective samples inside."""

    @property
    def Config(self) -> type:  # noqa: N802 (a class, in the module's namespace)
        """What describes a model, static and hashable; raises ValueError at a bad value.

        Two properties are obligatory.  ``outputs``, an ``Outputs``, says what the outputs are and
        what targets may be.  ``input_range``, (least, greatest), says what inputs must lie in, None
        that they may be anything; of inputs of several arrays it is {name: (least, greatest)}.
        """
        ...

    @property
    def PRESETS(self) -> Mapping[str, Any]:  # noqa: N802
        """Configs by name: always "tiny", for tests, and the published ones."""
        ...

    def init(self, cfg: Any, key: Array) -> Params:
        """Parameters drawn from ``key``."""
        ...

    def apply(self, cfg: Any, params: Params, inputs: Any, *, key: Array | None = None) -> Any:
        """The model itself.  ``key``: typed keys [batch], one for each example, or None for the deterministic model."""
        ...

    def loss(
        self, cfg: Any, params: Params, batch: Batch, *, key: Array | None = None, carry: Carry = ()
    ) -> tuple[Array, Aux]:
        """Objective summed over unmasked items, to be minimised, and what goes with it."""
        ...

    def init_carry(self, cfg: Any, params: Params, batch_size: int, *, key: Array) -> Carry:
        """What ``loss`` carries from batch to batch: leaves lead with [batch]; () if nothing."""
        ...

    def example_batch(self, cfg: Any, key: Array, batch_size: int) -> Batch:
        """A random but valid batch."""
        ...

    def trace(self, cfg: Any, params: Params, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """The outputs of ``apply`` at key=None and every named intermediate that a person may want to see.

        A model whose outputs are logits names their probabilities "outputs".  One without targets
        names its reconstruction of the inputs "reconstruction", [batch, ...] of as many values.
        """
        ...


@runtime_checkable
class Recurrent(Model, Protocol):
    """What models of sequences offer besides, so that training by pieces, streaming and generation are one definition.

    ``apply`` is ``unroll`` from the initial carry.
    """

    def initial_carry(self, cfg: Any, params: Params, batch_size: Any) -> Carry:
        """Of a sequence of which nothing has been seen; leaves lead with [batch]."""
        ...

    def unroll(
        self,
        cfg: Any,
        params: Params,
        carry: Carry,
        inputs: Array,
        *,
        key: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Carry, Array]:
        """The carry after inputs [batch, time, ...], and the outputs.  mask [batch, time]: False where there is no step."""
        ...

    def step(self, cfg: Any, params: Params, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """The carry after one step of each row, inputs [batch, ...], and its outputs."""
        ...


@runtime_checkable
class Conditional(Model, Protocol):
    """What models offer besides that write a sequence given something else, such as a sentence or an image.

    ``apply`` is ``encode``, and then ``decode_step`` token by token.
    """

    def encode(
        self, cfg: Any, params: Params, inputs: Any, *, key: Array | None = None
    ) -> tuple[Any, Carry]:
        """What is known of the inputs, a pytree, and the carry before the first step; leaves of both lead with [batch]."""
        ...

    def decode_step(
        self, cfg: Any, params: Params, carry: Carry, inputs: Array, memory: Any
    ) -> tuple[Carry, Array]:
        """The carry after one token of each row, inputs [rows], and the logits [rows, vocabulary] of the next one.

        rows: of ``memory``, or a multiple, side by side: hypotheses of a beam search.
        """
        ...


@runtime_checkable
class Autoencoder(Model, Protocol):
    """What autoencoders offer besides: without a key, ``apply`` is ``encode`` and then ``decode``."""

    def encode(self, cfg: Any, params: Params, inputs: Array) -> Array:
        """The code [batch, ...] of inputs [batch, ...]."""
        ...

    def decode(self, cfg: Any, params: Params, code: Array) -> Array:
        """The reconstruction of the inputs from a code [batch, ...], as ``apply`` returns it."""
        ...


@runtime_checkable
class EnergyModel(Model, Protocol):
    """What energy-based models of visible and hidden units offer besides.

    key: typed keys [batch], one for each row.
    """

    def free_energy(self, cfg: Any, params: Params, visible: Array) -> Array:
        """-log of the unnormalised probability of visible states [batch, visible]: [batch], in nats."""
        ...

    def gibbs_step(
        self, cfg: Any, params: Params, visible: Array, key: Array
    ) -> tuple[Array, Array]:
        """Hidden states given the visible ones, then visible states given those: (new visible, hidden)."""
        ...

    def sample(
        self, cfg: Any, params: Params, visible: Array, key: Array, steps: int | Array
    ) -> Array:
        """Visible states [batch, visible] after ``steps`` Gibbs steps (0 or more) from ``visible``, each row a chain."""
        ...


@runtime_checkable
class Generative(Model, Protocol):
    """What models offer besides that a Gibbs chain generates from."""

    def fantasies(
        self, cfg: Any, params: Params, inputs: Array, key: Array, steps: int | Array
    ) -> Array:
        """Means of the visible units [batch, values] after ``steps`` Gibbs steps from inputs [batch, ...], each row a chain.

        key: [batch], one for each chain.  steps: 1 or more, and may be traced.
        """
        ...


@runtime_checkable
class Adaptable(Protocol):
    """A Config that can be brought to other data."""

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> Any:
        """The same model for inputs [batch, *shape] and so many classes; None keeps their number.

        Raises ValueError where there is no such model.
        """
        ...


CONTRACT = {
    "init": ("cfg", "key"),
    "apply": ("cfg", "params", "inputs", "key"),
    "loss": ("cfg", "params", "batch", "key", "carry"),
    "init_carry": ("cfg", "params", "batch_size", "key"),
    "example_batch": ("cfg", "key", "batch_size"),
    "trace": ("cfg", "params", "inputs"),
}
"""Function names of a model and their parameters, for the test that keeps them uniform."""


BLOCK = "block"


def block(x: T) -> T:
    """The result of a part of a deep model: when memory is short, only these are kept for the backward pass."""
    return checkpoint_name(x, BLOCK)


def restart(initial: Carry, carry: Carry, batch: Batch) -> Carry:
    """``carry`` where a batch goes on from the one before; ``initial`` for rows that ``batch["reset"]`` says begin anew.

    All of them do without a carry, and where nothing says that any goes on.
    """
    if not jax.tree.leaves(carry) or "reset" not in batch:
        return initial
    reset = batch["reset"]

    def choose(initial: Array, leaf: Array) -> Array:
        return jnp.where(reset.reshape(-1, *[1] * (leaf.ndim - 1)), initial, leaf)

    return jax.tree.map(choose, initial, carry)


def blank_padding(batch: Batch, carry: Carry = ()) -> tuple[Batch, Carry]:
    """What every ``loss`` begins with: rows whose mask is all False have real inputs and targets of zero, whatever they held.

    It has to happen before the model: the gradient of a kernel is its inputs times the errors of its outputs, and a row that is
    NaN times an error of zero is NaN.  Such a row's carry stays as it is, but for numbers that are not finite, which are zero.
    Integers are left alone, as they do no harm: an error of zero reaches no row of an embedding.  The mask is returned as bool.
    """
    mask = jnp.asarray(batch["mask"]).astype(bool)
    rows = jnp.any(mask.reshape(mask.shape[0], -1), axis=1)

    def blank(leaf: Any, *, keeps_finite: bool = False) -> Any:
        # Another number of rows is for the model to name.
        if jnp.shape(leaf)[:1] != rows.shape or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        there = rows.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(
            there | jnp.isfinite(leaf) if keeps_finite else there, leaf, jnp.zeros((), leaf.dtype)
        )

    replaced = {
        name: jax.tree.map(blank, batch[name]) for name in ("inputs", "targets") if name in batch
    }
    return {**batch, **replaced, "mask": mask}, jax.tree.map(
        functools.partial(blank, keeps_finite=True), carry
    )
