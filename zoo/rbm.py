"""Restricted Boltzmann machines (Smolensky 1986) trained by contrastive divergence (Hinton 2002).

Visible units v and hidden units h, without connections within a layer, have an energy:

    E(v, h) = Q(v) + Q(h) - b v - c h - v W h
    Q(x) = 0 for Bernoulli units, 1/2 |x|^2 for Gaussian units of variance 1

Therefore the units of a layer are independent given the other layer:

    p(h = 1 | v) = sigmoid(c + v W)        p(v = 1 | h) = sigmoid(b + h W^T)

A Gaussian unit is normal with the same sum as its mean.

Learning descends the difference of two free energies F(v) = -log sum_h exp(-E(v, h)): that of the
data, and that of samples from a Gibbs chain, which starts at the data (CD-k) or never restarts
(persistent CD; Tieleman 2008).  The gradient is the rule dW = <v h>_data - <v h>_chain, so neither
method needs its own trainer.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from zoo.base import Aux, Batch, Outputs, Params, blank_padding
from zoo.parts.checking import (
    require,
    require_inputs,
    require_integer,
    require_one_of,
    require_shape,
)
from zoo.parts.config import NonNegativeFloat, PositiveFloat, PositiveInt, replace, static
from zoo.parts.layers import ComputeDtype, add_gradient, at_least_float32, bernoulli, dense, summed

SAMPLED = True

Units = Literal["bernoulli", "gaussian"]
UNITS = ("bernoulli", "gaussian")
HIDDEN, VISIBLE, CHAIN, BINARIZE, START = range(5)
"""Uses of an example's key; each folds in its own number."""
Binarize = Literal["none", "sample", "threshold"]


class Numbers(NamedTuple):
    """Random numbers that replace keys, for comparison with a program that draws its own.

    hidden, visible: [batch, units] for a Gibbs step, [batch, steps, units] for a chain.  Bernoulli
        units use uniform numbers between 0 and 1 and are on if the number is less than their mean;
        Gaussian units use standard normal numbers.
    """

    hidden: Array
    visible: Array


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A restricted Boltzmann machine and its learning algorithm.

    visible, hidden: number of units.
    visible_units, hidden_units: bernoulli, or gaussian of variance 1 (then the other layer must be
        bernoulli).
    binarize: treatment of inputs between 0 and 1.  none uses these probabilities as if they were
        states; sample draws new states each time an example is used (without a key, they remain
        probabilities); threshold cuts at 1/2.
    steps: of the Gibbs chain, the k of CD-k.
    persistent: chains continue from batch to batch instead of starting at the data.
    positive_phase: mean uses the hidden units' probabilities given the data; sampled uses the
        states that start the chain (Palm 2012).
    sparsity_target, sparsity_cost: desired activation probability of a hidden unit, and the weight
        of its cross-entropy with the actual one (Hinton 2010, section 11); without a target, there
        is no cost.
    initializer_deviation: standard deviation of the normal initial kernel; with 0, only the sampled
        states break the symmetry between units.
    compute_dtype: None computes in the parameters' type; "bfloat16" halves memory traffic on
        accelerators.
    """

    visible: PositiveInt
    hidden: PositiveInt
    visible_units: Units = "bernoulli"
    hidden_units: Units = "bernoulli"
    binarize: Binarize = "none"
    steps: PositiveInt = 1
    persistent: bool = False
    positive_phase: Literal["mean", "sampled"] = "mean"
    sparsity_target: float | None = None
    sparsity_cost: PositiveFloat = 0.1
    initializer_deviation: NonNegativeFloat = 0.01
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require_units(self, "visible_units", "hidden_units")
        require_binarized(self, self.binarize, self.visible_units)
        target = self.sparsity_target
        probability = target is None or (isinstance(target, float) and 0 < target < 1)
        require(probability, self, "sparsity_target", "a probability, 0 < target < 1, or None")
        require(
            target is None or self.hidden_units == "bernoulli",
            self,
            "sparsity_target",
            "None for gaussian hidden units",
        )

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        return replace(self, visible=math.prod(shape))

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("density")

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Allowed range of the inputs; None allows any."""
        return (0.0, 1.0) if self.visible_units == "bernoulli" else None


def require_units(cfg: Any, visible: str, hidden: str, *, adjacent: bool = True) -> None:
    """Raises ValueError if the kinds of units in two fields of a Config are incompatible.

    Adjacent layers must not both be gaussian.
    """
    incompatible = adjacent and getattr(cfg, visible) == getattr(cfg, hidden) == "gaussian"
    require(
        not incompatible,
        cfg,
        hidden,
        "'bernoulli' beside gaussian visible units: the energy would have no minimum",
    )


def require_binarized(cfg: Any, binarize: Binarize, visible_units: Units) -> None:
    """Raises ValueError if the Config ``cfg`` binarizes gaussian visible units."""
    require(
        visible_units == "bernoulli" or binarize == "none",
        cfg,
        "binarize",
        "'none' for gaussian visible units",
    )


PRESETS: dict[str, Config] = {
    "tiny": Config(visible=6, hidden=5, initializer_deviation=0.5),
    "digits": Config(visible=64, hidden=100),
    # The first layer of the Matlab DeepLearnToolbox's test_example_DBN (Palm 2012).
    "toolbox": Config(visible=784, hidden=100, positive_phase="sampled", initializer_deviation=0.0),
    # Salakhutdinov and Murray 2008, table 1.
    "mnist20": Config(visible=784, hidden=20, binarize="sample"),
    "mnist500": Config(visible=784, hidden=500, binarize="sample"),
}


def init(cfg: Config, key: Array) -> Params:
    """A normal kernel [visible, hidden], bias [hidden] and visible_bias [visible].

    ``bias`` belongs to the hidden units; both biases are zero.
    """
    kernel = cfg.initializer_deviation * jax.random.normal(key, (cfg.visible, cfg.hidden))
    return {"kernel": kernel, "bias": jnp.zeros(cfg.hidden), "visible_bias": jnp.zeros(cfg.visible)}


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, ...] of ``visible`` values each -> hidden units [batch, hidden].

    The result is their means, or with a key, their states.
    """
    field = hidden_field(cfg, params, states(cfg, inputs, key))
    return mean(cfg.hidden_units, field) if key is None else draw(cfg.hidden_units, field, key)


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Hidden means, and "hidden" [batch, hidden], "reconstruction" [batch, visible].

    "reconstruction" is the visible means given the hidden means.
    """
    hidden = apply(cfg, params, inputs)
    return hidden, {
        "hidden": hidden,
        "reconstruction": mean(cfg.visible_units, visible_field(cfg, params, hidden)),
    }


def states(
    cfg: Config, inputs: Array, key: Key[Array, " batch"] | Numbers | None = None
) -> Float[Array, "batch visible"]:
    """Visible states for inputs [batch, ...]: flattened, and binarized according to ``cfg``.

    Raises ValueError for a wrong number of values, for concrete inputs outside ``cfg.input_range``,
    and for ``Numbers`` if states must be drawn.
    """
    visible = require_inputs(inputs, cfg.visible, cfg.input_range, "visible")
    if cfg.binarize == "sample" and key is not None:
        if isinstance(key, Numbers):
            raise ValueError(
                f"binarize={cfg.binarize!r}, allowed with Numbers, "
                "which cover only Gibbs steps: 'none', 'threshold'"
            )
        return bernoulli(_fold(key, BINARIZE), visible)
    return (visible > 0.5).astype(visible.dtype) if cfg.binarize == "threshold" else visible


def hidden_field(
    cfg: Config, params: Params, visible: Float[Array, "batch visible"]
) -> Float[Array, "batch hidden"]:
    """c + v W, the total input of the hidden units."""
    return at_least_float32(dense(params, visible, cfg.compute_dtype))


def visible_field(
    cfg: Config, params: Params, hidden: Float[Array, "batch hidden"]
) -> Float[Array, "batch visible"]:
    """b + h W^T, the total input of the visible units."""
    downwards = {"kernel": params["kernel"].T, "bias": params["visible_bias"]}
    return at_least_float32(dense(downwards, hidden, cfg.compute_dtype))


def mean(units: Units, field: Array) -> Array:
    """Expectation of units with total input ``field``.

    For Bernoulli units, this is the probability of being on.
    """
    require_one_of("units", units, UNITS)
    return jax.nn.sigmoid(field) if units == "bernoulli" else field


def draw(
    units: Units,
    field: Float[Array, "batch units"],
    key: Key[Array, " batch"] | Float[Array, "..."],
) -> Float[Array, "batch units"]:
    """Random states of units with total input ``field``.

    key: a key per row, or the random numbers [batch, units] themselves: see ``Numbers``.
    """
    require_one_of("units", units, UNITS)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        require_shape("numbers", key, field.shape)
        return (
            (key < mean(units, field)).astype(field.dtype)
            if units == "bernoulli"
            else field + key.astype(field.dtype)
        )
    if units == "bernoulli":
        return bernoulli(key, mean(units, field))
    return field + jax.vmap(lambda key: jax.random.normal(key, field.shape[1:], field.dtype))(key)


def log_normalizer(units: Units, field: Array) -> Array:
    """Log of the sum (or integral) of exp(field x - Q(x)) over a unit's states x.

    Its derivative is ``mean``.
    """
    require_one_of("units", units, UNITS)
    return (
        jax.nn.softplus(field)
        if units == "bernoulli"
        else 0.5 * jnp.square(field) + 0.5 * jnp.log(2 * jnp.pi)
    )


def energy(cfg: Config, params: Params, visible: Array, hidden: Array) -> Float[Array, " batch"]:
    """E(v, h) of states [batch, visible] and [batch, hidden].

    Raises ValueError if the shapes do not match.
    """
    require_shape("visible", visible, ("batch", cfg.visible))
    require_shape("hidden", hidden, (visible.shape[0], cfg.hidden))
    interaction = jnp.sum(hidden_field(cfg, params, visible) * hidden, axis=-1)  # c h + v W h
    return (
        _quadratic(cfg.visible_units, visible)
        + _quadratic(cfg.hidden_units, hidden)
        - visible @ params["visible_bias"]
        - interaction
    )


def free_energy(cfg: Config, params: Params, visible: Array) -> Float[Array, " batch"]:
    """F(v) = -log sum_h exp(-E(v, h)).

    For Bernoulli hidden units, this is Q(v) - b v - sum_j log(1 + exp(c_j + (v W)_j)).
    """
    return _free_energy(cfg, params, visible, hidden_field(cfg, params, visible))


def _free_energy(cfg: Config, params: Params, visible: Array, field: Array) -> Array:
    normalizers = jnp.sum(log_normalizer(cfg.hidden_units, field), axis=-1)
    return _quadratic(cfg.visible_units, visible) - visible @ params["visible_bias"] - normalizers


def _quadratic(units: Units, x: Array) -> Array:
    return (
        jnp.zeros(x.shape[0], x.dtype)
        if units == "bernoulli"
        else 0.5 * jnp.sum(jnp.square(x), axis=-1)
    )


def _fold(key: Key[Array, " batch"], use: int | Array) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, (0, None))(key, use)


def _at(key: Key[Array, " batch"] | Numbers, index: int | Array) -> Key[Array, " batch"] | Numbers:
    """The random numbers of one step of a chain."""
    return (
        Numbers(*(numbers[:, index] for numbers in key))
        if isinstance(key, Numbers)
        else _fold(key, index)
    )


def gibbs_step(
    cfg: Config,
    params: Params,
    visible: Float[Array, "batch visible"],
    key: Key[Array, " batch"] | Numbers,
) -> tuple[Float[Array, "batch visible"], Float[Array, "batch hidden"]]:
    """One step of block Gibbs sampling: (new visible states, hidden states).

    Draws hidden states given the visible ones, then visible states given those.
    """
    up, down = key if isinstance(key, Numbers) else (_fold(key, HIDDEN), _fold(key, VISIBLE))
    hidden = draw(cfg.hidden_units, hidden_field(cfg, params, visible), up)
    return draw(cfg.visible_units, visible_field(cfg, params, hidden), down), hidden


def sample(
    cfg: Config,
    params: Params,
    visible: Float[Array, "batch visible"],
    key: Key[Array, " batch"] | Numbers,
    steps: int | Array,
) -> Float[Array, "batch visible"]:
    """Visible states after ``steps`` Gibbs steps from ``visible``; each row is a chain.

    The loop is compiled once for any number of steps.  Raises ValueError for a negative number, or
    for more steps than ``Numbers`` has, if the number is not traced.
    """
    most = None
    if isinstance(key, Numbers):
        key = _require_numbers(cfg, key, visible.shape[0], "steps")
        most = key.hidden.shape[1]
    require_integer("steps", steps, at_least=0, at_most=most)
    return jax.lax.fori_loop(
        0,
        steps,
        lambda index, visible: gibbs_step(cfg, params, visible, _at(key, index))[0],
        visible,
    )


def fantasies(
    cfg: Config, params: Params, inputs: Array, key: Key[Array, " batch"], steps: int | Array
) -> Float[Array, "batch visible"]:
    """Visible means given the hidden states of the last of ``steps`` Gibbs steps.

    inputs: [batch, ...], where the chains start; each row is a chain.  With the same key,
        ``sample`` draws its states from these means.  Raises ValueError for fewer than one step, if
        the number is not traced.
    """
    require_integer("steps", steps)
    before = sample(cfg, params, states(cfg, inputs), key, steps - 1)
    _, hidden = gibbs_step(cfg, params, before, _fold(key, steps - 1))
    return mean(cfg.visible_units, visible_field(cfg, params, hidden))


def loss(
    cfg: Config,
    params: Params,
    batch: Batch,
    *,
    key: Array | Numbers | None = None,
    carry: Any = (),
) -> tuple[Array, Aux]:
    """Squared reconstruction error; its *gradient* is that of contrastive divergence.

    The error is summed over units and unmasked examples.  CD is not the gradient of any function
    whose decrease could be monitored (Sutskever and Tieleman 2010), so the value is the error
    instead.  With a key, this is the distance from the data to the chain's first visible states
    (for persistent chains, to their means).  Without a key, it is the distance to the visible means
    given the hidden means, and the gradient is that of this value.

    Metrics: "reconstruction_error", and "free_energy" of the data, which is meaningful only
    relative to other data.
    key: a key per row, or ``Numbers`` [batch, steps, units].  Persistent chains need one more step;
        the first step is the one from the data.
    carry: the persistent chains' visible states [batch, visible]; () for new ones.
    Raises ValueError for ``Numbers`` if anything but a Gibbs step draws: binarize "sample", or
    persistent chains without a carry.
    """
    batch, carry = blank_padding(batch, carry)
    visible, mask = states(cfg, batch["inputs"], key), batch["mask"]
    field = hidden_field(cfg, params, visible)
    data_energy = _free_energy(cfg, params, visible, field)

    def error(reconstruction: Array) -> Array:
        return jnp.sum(jnp.square(visible - reconstruction), axis=-1)

    def summary(losses: Array, errors: Array, carry: Any) -> tuple[Array, Aux]:
        total, aux = summed(losses, mask, reconstruction_error=errors, free_energy=data_energy)
        return total, aux._replace(carry=carry)

    if key is None:
        errors = error(
            mean(cfg.visible_units, visible_field(cfg, params, mean(cfg.hidden_units, field)))
        )
        return summary(errors, errors, carry)
    # The chain's states are samples: the gradient must not flow through the parameters that drew
    # them, only through the energies below.
    fixed = jax.lax.stop_gradient(params)
    first, then = _first_and_then(cfg, key, visible.shape[0])
    reconstruction, hidden = gibbs_step(cfg, fixed, visible, first)
    if cfg.persistent:
        if isinstance(carry, tuple):
            if isinstance(key, Numbers):
                raise ValueError("carry=(), allowed with Numbers: the chains' visible states")
            carry = _start(cfg, params, _fold(key, START))
        # Rows that restart begin their chains at the data.
        chain = jnp.where(batch["reset"][:, None], visible, carry) if "reset" in batch else carry
        chain = sample(cfg, fixed, chain, then, cfg.steps)
        errors = error(
            mean(
                cfg.visible_units,
                visible_field(cfg, fixed, mean(cfg.hidden_units, jax.lax.stop_gradient(field))),
            )
        )
    elif cfg.steps == 1:
        chain, errors = reconstruction, error(reconstruction)
    else:
        chain, errors = (
            sample(cfg, fixed, reconstruction, then, cfg.steps - 1),
            error(reconstruction),
        )
    chain = jax.lax.stop_gradient(chain)
    # The value stays the reconstruction error; only the gradient of this difference is added.
    positive = (
        energy(cfg, params, visible, hidden) if cfg.positive_phase == "sampled" else data_energy
    )
    difference = positive - free_energy(cfg, params, chain) + _sparsity(cfg, field)
    return summary(add_gradient(errors, difference), errors, chain if cfg.persistent else carry)


def _first_and_then(
    cfg: Config, key: Array | Numbers, rows: int
) -> tuple[Array | Numbers, Array | Numbers]:
    """Random numbers for the step from the data, and for the rest of the chain."""
    if not isinstance(key, Numbers):
        return key, _fold(key, CHAIN)
    numbers = _require_numbers(cfg, key, rows, cfg.steps + cfg.persistent)
    return _at(numbers, 0), Numbers(*(draws[:, 1:] for draws in numbers))


def _require_numbers(cfg: Config, numbers: Numbers, rows: int, steps: int | str) -> Numbers:
    """The numbers of a chain as JAX arrays.

    Raises ValueError if the shapes do not match.
    """
    hidden, visible = map(jnp.asarray, numbers)
    require_shape("numbers.hidden", hidden, (rows, steps, cfg.hidden))
    require_shape("numbers.visible", visible, (rows, hidden.shape[1], cfg.visible))
    return Numbers(hidden, visible)


def _sparsity(cfg: Config, field: Array) -> Array:
    """Cross-entropy [batch] between the desired and actual activation of the hidden units.

    Its derivative by the field is the actual probability minus the desired one.
    """
    if cfg.sparsity_target is None:
        return jnp.zeros(field.shape[0], field.dtype)
    return cfg.sparsity_cost * jnp.sum(
        jax.nn.softplus(field) - cfg.sparsity_target * field, axis=-1
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Any:
    """Initial visible states [batch, visible] of persistent chains; otherwise ().

    They are drawn from the visible biases alone.
    """
    return _start(cfg, params, jax.random.split(key, batch_size)) if cfg.persistent else ()


def _start(cfg: Config, params: Params, key: Key[Array, " batch"]) -> Array:
    return draw(
        cfg.visible_units, jnp.broadcast_to(params["visible_bias"], (len(key), cfg.visible)), key
    )


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random states [batch, visible]."""
    keys, zeros = jax.random.split(key, batch_size), jnp.zeros((batch_size, cfg.visible))
    return {"inputs": draw(cfg.visible_units, zeros, keys), "mask": jnp.ones(batch_size, bool)}
