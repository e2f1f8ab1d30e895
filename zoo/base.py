"""The interface that every model of the zoo implements.

A model is a module.  Its functions are pure and take a static ``Config`` first, so that
``jax.jit(mlp.apply)(cfg, params, x)`` just works: equal configs share one trace, without
``static_argnums`` or a closure.

A *batch* is a dict of arrays whose leading axis is the example:

    inputs    the argument of ``apply``: an array, or a dict of arrays
    targets   compared with the outputs by the loss; absent for unsupervised models
    mask      bool, [batch] or [batch, time]; always present.  False marks padding, which never
              affects the result, whatever it contains
    reset     bool, [batch]; only if batches continue each other.  True restarts that row's carry
              before the batch

Every reduction is a *sum* over unmasked items, returned together with the number of items.  The
caller that has all parts of a batch (micro-batches, devices, processes) adds them and divides once.
So ragged batches are exact, and an all-padding shard never divides 0 by 0.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

Params = dict[str, Any]
"""Nested dict of arrays, with the usual leaf names (kernel, bias, embedding)."""
Batch = dict[str, Any]
Carry = Any
T = TypeVar("T")


class Aux(NamedTuple):
    """Auxiliary results that ``loss`` returns with its total.

    count: number of unmasked items in the total.
    metrics: {name: (sum, count)}, both scalars; the trainer adds them up and divides.
    carry: state for the next batch; () for most models.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    metrics: dict[str, tuple[Array, Array]]
    carry: Carry = ()


class Targets(NamedTuple):
    """The targets that a loss accepts.

    units: outputs per item; an integer target is the index of one of them, the class.
    least: the smallest such index that is a target.
    rows: the alternative to classes, one number per output: any finite "numbers", "probabilities"
        in 0..1, or a "distribution", whose probabilities sum to 1.  None if only classes are
        allowed.
    """

    units: int
    rows: Literal["numbers", "probabilities", "distribution"] | None = None
    least: int = 0


class Outputs(NamedTuple):
    """The meaning of a model's outputs, and the unit of its loss.

    of: "targets": the outputs estimate the batch's targets.  "inputs": they reconstruct the inputs.
        "hidden": the loss reconstructs hidden units (a greedy autoencoder with more than one pair
        of layers).  "density": the model defines an energy of the inputs.
    targets: the targets that the loss accepts; None for models without targets.
    likelihood: whether the loss of an item is -log p(its target), so that its unit is the nat.
    aligned: whether outputs and targets correspond one to one.  If not, the targets are a labelling
        of the sequence of outputs, see ``zoo.parts.labelling``.
    """

    of: Literal["targets", "inputs", "hidden", "density"]
    targets: Targets | None = None
    likelihood: bool = False
    aligned: bool = True


@runtime_checkable
class Model(Protocol):
    """The members of a model module, in order.

    A module may also set ``SAMPLED = True`` if its loss draws samples.
    """

    @property
    def Config(self) -> type:  # noqa: N802 (a class, in the module's namespace)
        """The model's static, hashable description; raises ValueError for an invalid value.

        Two properties are required.  ``outputs`` is an ``Outputs``.  ``input_range`` is the (least,
        greatest) allowed input, or None if any is allowed; if the inputs are several arrays, it is
        {name: (least, greatest)}.
        """
        ...

    @property
    def PRESETS(self) -> Mapping[str, Any]:  # noqa: N802
        """Configs by name: always "tiny", for tests, and the published ones."""
        ...

    def init(self, cfg: Any, key: Array) -> Params:
        """Random parameters drawn with ``key``."""
        ...

    def apply(self, cfg: Any, params: Params, inputs: Any, *, key: Array | None = None) -> Any:
        """The outputs of the model.

        key: typed keys [batch], one per example, or None for the deterministic model.
        """
        ...

    def loss(
        self, cfg: Any, params: Params, batch: Batch, *, key: Array | None = None, carry: Carry = ()
    ) -> tuple[Array, Aux]:
        """The objective to minimise, summed over unmasked items, and its ``Aux``."""
        ...

    def init_carry(self, cfg: Any, params: Params, batch_size: int, *, key: Array) -> Carry:
        """Initial state that ``loss`` carries between batches; () if none.

        Every leaf has a leading axis [batch].
        """
        ...

    def example_batch(self, cfg: Any, key: Array, batch_size: int) -> Batch:
        """A random but valid batch."""
        ...

    def trace(self, cfg: Any, params: Params, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """The outputs of ``apply`` at key=None, and all named intermediates.

        A model whose outputs are logits names their probabilities "outputs".  One without targets
        names its reconstruction of the inputs "reconstruction", [batch, ...] with the same number
        of values.
        """
        ...


@runtime_checkable
class Recurrent(Model, Protocol):
    """Additional methods of sequence models.

    They let truncated training, streaming and generation share one definition.  ``apply`` is
    ``unroll`` from the initial carry.
    """

    def initial_carry(self, cfg: Any, params: Params, batch_size: Any) -> Carry:
        """The carry before the first step of a sequence; leaves lead with [batch]."""
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
        """The carry after inputs [batch, time, ...], and the outputs.

        mask: [batch, time], False where there is no step.
        """
        ...

    def step(self, cfg: Any, params: Params, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """The carry after one step of inputs [batch, ...], and the outputs."""
        ...


@runtime_checkable
class Conditional(Model, Protocol):
    """Additional methods of models that generate a sequence conditioned on an input.

    The input is a sentence or an image, for example.  ``apply`` is ``encode`` followed by
    ``decode_step`` for each token.
    """

    def encode(
        self, cfg: Any, params: Params, inputs: Any, *, key: Array | None = None
    ) -> tuple[Any, Carry]:
        """The encoded inputs, a pytree, and the carry before the first step.

        Leaves of both have a leading axis [batch].
        """
        ...

    def decode_step(
        self, cfg: Any, params: Params, carry: Carry, inputs: Array, memory: Any
    ) -> tuple[Carry, Array]:
        """The carry after one token per row, inputs [rows], and the next token's logits.

        The logits are [rows, vocabulary].  The number of rows is that of ``memory``, or a multiple
        of it: the hypotheses of one example in a beam search are adjacent.
        """
        ...


@runtime_checkable
class Autoencoder(Model, Protocol):
    """Additional methods of autoencoders.

    Without a key, ``apply`` is ``encode`` followed by ``decode``.
    """

    def encode(self, cfg: Any, params: Params, inputs: Array) -> Array:
        """The code [batch, ...] of inputs [batch, ...]."""
        ...

    def decode(self, cfg: Any, params: Params, code: Array) -> Array:
        """The reconstruction, as ``apply`` returns it, from a code [batch, ...]."""
        ...


@runtime_checkable
class EnergyModel(Model, Protocol):
    """Additional methods of energy-based models with visible and hidden units.

    key: typed keys [batch], one per row.
    """

    def free_energy(self, cfg: Any, params: Params, visible: Array) -> Array:
        """Negative log of the unnormalised probability, in nats: [batch].

        visible: visible states [batch, visible].
        """
        ...

    def gibbs_step(
        self, cfg: Any, params: Params, visible: Array, key: Array
    ) -> tuple[Array, Array]:
        """One step of block Gibbs sampling: (new visible states, hidden states).

        Draws hidden states given the visible ones, then visible states given those.
        """
        ...

    def sample(
        self, cfg: Any, params: Params, visible: Array, key: Array, steps: int | Array
    ) -> Array:
        """Visible states [batch, visible] after ``steps`` Gibbs steps (0 or more) from ``visible``.

        Each row is a chain.
        """
        ...


@runtime_checkable
class Generative(Model, Protocol):
    """Additional method of models that generate with a Gibbs chain."""

    def fantasies(
        self, cfg: Any, params: Params, inputs: Array, key: Array, steps: int | Array
    ) -> Array:
        """Means of the visible units [batch, values] after ``steps`` Gibbs steps.

        inputs: [batch, ...], where the chains start; each row is a chain.
        key: [batch], one per chain.  steps: 1 or more; may be traced.
        """
        ...


@runtime_checkable
class Adaptable(Protocol):
    """A Config that can be adapted to other data."""

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> Any:
        """The same model for inputs [batch, *shape] and this many classes.

        classes: None keeps the current number.  Raises ValueError if there is no such model.
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
"""Functions of a model and their parameters; a test checks that every model has these."""


BLOCK = "block"


def block(x: T) -> T:
    """Marks the result of one block of a deep model.

    Under rematerialisation, only marked results are kept for the backward pass.
    """
    return checkpoint_name(x, BLOCK)


def restart(initial: Carry, carry: Carry, batch: Batch) -> Carry:
    """``carry``, with rows that ``batch["reset"]`` marks replaced by ``initial``.

    If there is no carry, or the batch has no "reset", every row starts from ``initial``.
    """
    if not jax.tree.leaves(carry) or "reset" not in batch:
        return initial
    reset = batch["reset"]

    def choose(initial: Array, leaf: Array) -> Array:
        return jnp.where(reset.reshape(-1, *[1] * (leaf.ndim - 1)), initial, leaf)

    return jax.tree.map(choose, initial, carry)


def blank_padding(batch: Batch, carry: Carry = ()) -> tuple[Batch, Carry]:
    """The batch with its all-padding rows set to zero; every ``loss`` calls this first.

    Rows whose mask is all False get zero inputs and targets, whatever they contained.  This must
    happen before the model runs: the gradient of a kernel is its inputs times the output errors,
    and NaN times an error of zero is still NaN.  Such a row keeps its carry, except that non-finite
    numbers become zero.  Integers are unchanged: they are harmless, because a zero error has no
    effect on an embedding.  The mask is returned as bool.
    """
    mask = jnp.asarray(batch["mask"]).astype(bool)
    rows = jnp.any(mask.reshape(mask.shape[0], -1), axis=1)

    def blank(leaf: Any, *, keeps_finite: bool = False) -> Any:
        # Leave a wrong number of rows unchanged: the model raises a clearer error.
        if jnp.shape(leaf)[:1] != rows.shape or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        valid = rows.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(
            valid | jnp.isfinite(leaf) if keeps_finite else valid, leaf, jnp.zeros((), leaf.dtype)
        )

    replaced = {
        name: jax.tree.map(blank, batch[name]) for name in ("inputs", "targets") if name in batch
    }
    return {**batch, **replaced, "mask": mask}, jax.tree.map(
        functools.partial(blank, keeps_finite=True), carry
    )
