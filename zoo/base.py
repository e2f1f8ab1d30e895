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

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer

Params = dict[str, Any]
"""Nested dict of arrays, with the field's usual leaf names (kernel, bias, embedding)."""
Batch = dict[str, Any]
Carry = Any
T = TypeVar("T")


def plain(value: Any) -> Any:
    """Scalars and 0-d arrays of numpy and JAX as Python's bool, int, float, complex or str, in tuples and lists too.

    Each is exactly the number it was: ``np.float32(0.1)`` becomes 0.10000000149011612.  Anything else is returned as it is.
    Raises ValueError for a traced value, which is not known yet.
    """
    if type(value) in (list, tuple):
        return type(value)(plain(each) for each in value)
    if isinstance(value, Tracer):
        raise ValueError(f"{value} is traced, allowed: concrete values")
    if not isinstance(value, np.generic | np.ndarray | Array) or value.ndim or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    scalar = value.item()
    return float(scalar) if isinstance(scalar, np.floating) else scalar  # numpy's item() keeps a longdouble


def static(cls: type[T]) -> type[T]:
    """Class decorator for a Config: a pytree without leaves, part of the trace instead of its input.

    Arguments are made ``plain`` first, so that Configs of equal numbers are equal, share one trace, and can be written as text.
    Raises ValueError naming an argument that is traced or an array.
    """
    initialise = cls.__init__
    names = list(inspect.signature(initialise).parameters)[1:]

    def known(name: str, value: Any) -> Any:
        where = f"{cls.__module__}.{cls.__name__}: {name}"
        try:
            value = plain(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if isinstance(value, np.ndarray | Array):
            raise ValueError(f"{where} is an array of shape {value.shape}, allowed: Python's own values, such as a tuple")
        return value

    @functools.wraps(initialise)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        positional = [known(name, value) for name, value in zip(names, args, strict=False)]
        initialise(self, *positional, *args[len(names) :], **{name: known(name, value) for name, value in fields.items()})

    cls.__init__ = init
    return jax.tree_util.register_static(cls)


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

    def loss(self, cfg: Any, params: Params, batch: Batch, *, key: Array | None = None, carry: Carry = ()) -> tuple[Array, Aux]:
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
        self, cfg: Any, params: Params, carry: Carry, inputs: Array, *, key: Array | None = None, mask: Array | None = None
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

    def encode(self, cfg: Any, params: Params, inputs: Any, *, key: Array | None = None) -> tuple[Any, Carry]:
        """What is known of the inputs, a pytree, and the carry before the first step; leaves of both lead with [batch]."""
        ...

    def decode_step(self, cfg: Any, params: Params, carry: Carry, inputs: Array, memory: Any) -> tuple[Carry, Array]:
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

    def gibbs_step(self, cfg: Any, params: Params, visible: Array, key: Array) -> tuple[Array, Array]:
        """Hidden states given the visible ones, then visible states given those: (new visible, hidden)."""
        ...

    def sample(self, cfg: Any, params: Params, visible: Array, key: Array, steps: int | Array) -> Array:
        """Visible states [batch, visible] after ``steps`` Gibbs steps (0 or more) from ``visible``, each row a chain."""
        ...


@runtime_checkable
class Generative(Model, Protocol):
    """What models offer besides that a Gibbs chain generates from."""

    def fantasies(self, cfg: Any, params: Params, inputs: Array, key: Array, steps: int | Array) -> Array:
        """Means of the visible units [batch, values] after ``steps`` Gibbs steps from inputs [batch, ...], each row a chain.

        key: [batch], one for each chain.  steps: 1 or more, and may be traced.
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
        return jnp.where(there | jnp.isfinite(leaf) if keeps_finite else there, leaf, jnp.zeros((), leaf.dtype))

    replaced = {name: jax.tree.map(blank, batch[name]) for name in ("inputs", "targets") if name in batch}
    return {**batch, **replaced, "mask": mask}, jax.tree.map(functools.partial(blank, keeps_finite=True), carry)


def require(condition: bool, cfg: Any, field: str, allowed: str) -> None:
    """Raises ValueError naming the field of a Config, its value and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{type(cfg).__module__}.{type(cfg).__name__}: {field}={getattr(cfg, field)!r}, allowed: {allowed}")


def require_count(cfg: Any, field: str) -> None:
    """``require`` that a field of a Config is a positive integer."""
    value = getattr(cfg, field)
    require(type(value) is int and value >= 1, cfg, field, "a positive integer")


def require_choice(cfg: Any, field: str, choices: tuple[Any, ...]) -> None:
    """``require`` that a field of a Config is one of ``choices``."""
    require(getattr(cfg, field) in choices, cfg, field, "one of " + ", ".join(repr(choice) for choice in choices))


def require_rate(cfg: Any, *fields: str) -> None:
    """``require`` that fields of a Config are probabilities of dropping: 0 <= rate < 1."""
    for field in fields:
        rate = getattr(cfg, field)
        require(_is_number(rate) and 0 <= rate < 1, cfg, field, "a probability of dropping, 0 <= rate < 1")


def require_positive(cfg: Any, *fields: str) -> None:
    """``require`` that fields of a Config are positive finite numbers."""
    for field in fields:
        value = getattr(cfg, field)
        require(_is_number(value) and 0 < value < math.inf, cfg, field, "a positive number")


def require_sizes(cfg: Any, field: str, *, at_least: int) -> None:
    """``require`` that a field of a Config is a tuple (a list is made one) of ``at_least`` or more positive integers."""
    value = getattr(cfg, field)
    sizes = tuple(value) if isinstance(value, list | tuple) else ()
    valid = isinstance(value, list | tuple) and len(sizes) >= at_least and all(type(size) is int and size >= 1 for size in sizes)
    require(valid, cfg, field, f"{at_least} or more positive integers")
    object.__setattr__(cfg, field, sizes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_argument(name: str, value: Any, fits: Callable[[Any], bool], allowed: str) -> None:
    """Raises ValueError naming an argument of a function, its value and what is allowed, unless it fits.

    It is made ``plain`` first; a traced value is unknown, and passes.
    """
    if not isinstance(value, Tracer) and not fits(value := plain(value)):
        raise ValueError(f"{name}={value!r}, allowed: {allowed}")


def require_integer(name: str, value: Any, *, at_least: int = 1, at_most: int | None = None) -> None:
    """``require_argument`` that is an integer of this range."""
    limits = f"an integer, {at_least} " + ("or more" if at_most is None else f"to {at_most}")
    most = math.inf if at_most is None else at_most
    require_argument(name, value, lambda number: type(number) is int and at_least <= number <= most, limits)


def require_real(name: str, value: Any, *, at_least: float = 0.0, below: float = math.inf) -> None:
    """``require_argument`` that is a number of this range, finite."""
    limits = f"a number, {at_least:g} " + ("or more" if below == math.inf else f"<= {name} < {below:g}")
    require_argument(name, value, lambda number: _is_number(number) and at_least <= number < below, limits)


def require_one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """``require_argument`` that is one of ``choices``."""
    require_argument(name, value, lambda one: one in choices, "one of " + ", ".join(map(repr, choices)))


def require_shape(name: str, array: Any, shape: tuple[int | str | None, ...]) -> None:
    """Raises ValueError unless the array's shape matches.

    shape: an int is the required length of that axis, a str names an axis of any length.
    """
    actual = jnp.shape(array)
    fits = len(actual) == len(shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(shape, actual, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(axis) for axis in shape)
        raise ValueError(f"{name}: shape {actual}, expected [{wanted}]")


def require_inputs(inputs: Array, size: int, values: tuple[float, float] | None, what: str) -> Array:
    """Inputs [batch, ...] of ``size`` values each as [batch, size]; ``what``: the name of that size in the Config.

    Raises ValueError naming what is wrong, also with concrete values outside of the range ``values``; traced ones are unknown.
    """
    if inputs.ndim < 2 or math.prod(inputs.shape[1:]) != size:
        raise ValueError(f"inputs: shape {inputs.shape}, expected [batch, ...] with {what}={size} values each")
    if values is not None and not isinstance(inputs, Tracer):
        require_range("inputs", inputs, values)
    return inputs.reshape(inputs.shape[0], size)


def require_range(name: str, array: Any, values: tuple[float, float]) -> None:
    """Raises ValueError unless all of an array is within ``values``, to rounding in single precision (integers: exactly)."""
    low, high = values
    array = np.asarray(array)  # on the host: within a traced function, jax would trace this too
    least, greatest = (array.min(), array.max()) if array.size else values
    slack = 0 if array.dtype.kind in "bui" else 1e-6 * (high - low)
    if not low - slack <= least <= greatest <= high + slack:
        raise ValueError(f"{name}: values from {least:g} to {greatest:g}, allowed: {low:g} to {high:g}")


def unfold(earlier: Params, fresh: Params) -> Params:
    """``fresh`` with every leaf that has the same path and shape in ``earlier`` taken from there.

    So an MLP or a ConvNet starts from a deep belief net or an autoencoder, whose encoders have the names of its layers, and keeps
    its fresh output layer.  Raises ValueError when nothing is taken.
    """
    known, takes = leaves_by_path(earlier), shared(earlier, fresh)
    if not any(takes.values()):
        there = ", ".join(f"{path} {list(leaf.shape)}" for path, leaf in known.items())
        raise ValueError(f"transfer: no earlier parameter has the path and shape of one of the model's; there are {there}")
    flat, structure = jax.tree.flatten(fresh)
    taken = [known[path].astype(leaf.dtype) if takes[path] else leaf for path, leaf in zip(takes, flat, strict=True)]
    return jax.tree.unflatten(structure, taken)


def shared(earlier: Params, fresh: Params) -> dict[str, bool]:
    """{path of every fresh leaf: whether ``unfold`` takes it from ``earlier``}."""
    known = leaves_by_path(earlier)
    return {path: path in known and known[path].shape == leaf.shape for path, leaf in leaves_by_path(fresh).items()}


def leaves_by_path(params: Params) -> dict[str, Any]:
    """{"layer_0.kernel": leaf, ...}."""
    named = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in named}


def replace(cfg: T, **overrides: Any) -> T:
    """``dataclasses.replace`` whose error names the unknown field and those that exist."""
    fields = [field.name for field in dataclasses.fields(cfg)]  # pyright: ignore[reportArgumentType]
    for name in overrides:
        if name not in fields:
            raise ValueError(f"{type(cfg).__module__}.Config has no field {name!r}; fields: {', '.join(fields)}")
    return dataclasses.replace(cfg, **overrides)  # pyright: ignore[reportArgumentType]
