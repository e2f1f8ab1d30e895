"""Deep belief nets: restricted Boltzmann machines on top of each other, learned one at a time (Hinton, Osindero, Teh 2006).

Each machine learns the hidden means of the one below, as if they were data.  The result is a generative model, whose two top
layers are a machine and whose other layers generate downwards; and the up-pass, which is a multilayer perceptron with logistic
units: the names and shapes of its parameters are an MLP's, so that one can start from them (``zoo.parts.parameters.restore_matching``).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from zoo import rbm
from zoo.base import Aux, Batch, Outputs, Params, blank_padding
from zoo.parts.checking import require_integer
from zoo.parts.config import NonNegativeFloat, PositiveInt, at_least, replace, static
from zoo.parts.layers import ComputeDtype

SAMPLED = True


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A deep belief net and how its machines learn.

    sizes: units of every layer, inputs first.
    trains: top learns the highest machine alone, those below stay as they are: the greedy algorithm, a stage for each layer.  all
        learns every machine at once, each on what the ones below say at that moment.
    visible_units: of the inputs, bernoulli or gaussian.  top_units: of the highest layer.  All others are bernoulli.
    binarize, steps, persistent, positive_phase, initializer_deviation, compute_dtype: see ``zoo.rbm.Config``; binarize is for the
        inputs.
    """

    sizes: Annotated[tuple[int, ...], at_least(2)]
    trains: Literal["top", "all"] = "top"
    visible_units: rbm.Units = "bernoulli"
    top_units: rbm.Units = "bernoulli"
    binarize: rbm.Binarize = "none"
    steps: PositiveInt = 1
    persistent: bool = False
    positive_phase: Literal["mean", "sampled"] = "mean"
    initializer_deviation: NonNegativeFloat = 0.01
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        rbm.require_units(self, "visible_units", "top_units", adjacent=len(self.sizes) == 2)
        rbm.require_binarized(self, self.binarize, self.visible_units)

    @property
    def machines(self) -> tuple[rbm.Config, ...]:
        """The restricted Boltzmann machine between each two layers, lowest first."""
        last = len(self.sizes) - 2
        shared = ("steps", "persistent", "positive_phase", "initializer_deviation", "compute_dtype")
        return tuple(
            rbm.Config(
                visible=visible,
                hidden=hidden,
                visible_units=self.visible_units if index == 0 else "bernoulli",
                hidden_units=self.top_units if index == last else "bernoulli",
                binarize=self.binarize if index == 0 else "none",
                **{field: getattr(self, field) for field in shared},
            )
            for index, (visible, hidden) in enumerate(
                zip(self.sizes[:-1], self.sizes[1:], strict=True)
            )
        )

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        return replace(self, sizes=(math.prod(shape), *self.sizes[1:]))

    @property
    def outputs(self) -> Outputs:
        """What the outputs are, and the loss."""
        return Outputs("density")

    @property
    def input_range(self) -> tuple[float, float] | None:
        """What inputs must lie in; None is anything."""
        return self.machines[0].input_range


PRESETS: dict[str, Config] = {
    "tiny": Config(sizes=(6, 5, 4), trains="all", initializer_deviation=0.5),
    "digits": Config(sizes=(64, 100, 100)),
    # The Matlab DeepLearnToolbox's test_example_DBN (Palm 2012).
    "toolbox": Config(sizes=(784, 100, 100), positive_phase="sampled", initializer_deviation=0.0),
    # Hinton, Osindero and Teh 2006, figure 1, without its labels.
    "mnist": Config(sizes=(784, 500, 500, 2000)),
    # Hinton and Salakhutdinov 2006: what the deep autoencoder is unrolled from.
    "deep_autoencoder": Config(sizes=(784, 1000, 500, 250, 30), top_units="gaussian"),
}


def init(cfg: Config, key: Array) -> Params:
    """{"layer_0": {"kernel" [in, out], "bias" [out], "visible_bias" [in]}, ...}: see ``zoo.rbm.init``."""
    keys = jax.random.split(key, len(cfg.machines))
    return {
        f"layer_{index}": rbm.init(machine, keys[index])
        for index, machine in enumerate(cfg.machines)
    }


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, ...] of sizes[0] values each -> the highest layer [batch, sizes[-1]]: its means, or states with a key."""
    *below, top = cfg.machines
    return rbm.apply(top, params[f"layer_{len(below)}"], _upwards(cfg, params, inputs)[-1], key=key)


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Highest means, "hidden_0", ... [batch, units], and "reconstruction" [batch, sizes[0]]: means all the way down again."""
    top = apply(cfg, params, inputs)
    hidden = {
        f"hidden_{index}": means
        for index, means in enumerate([*_upwards(cfg, params, inputs)[1:], top])
    }
    return top, {**hidden, "reconstruction": down(cfg, params, top)}


def _upwards(cfg: Config, params: Params, inputs: Array) -> list[Array]:
    """What each machine sees: the inputs, then the hidden means of the machine below."""
    seen = [inputs]
    for index, machine in enumerate(cfg.machines[:-1]):
        seen.append(rbm.apply(machine, params[f"layer_{index}"], seen[-1]))
    return seen


def down(
    cfg: Config, params: Params, top: Float[Array, "batch units"], machines: int | None = None
) -> Array:
    """Means of the inputs [batch, sizes[0]] given the highest layer, layer after layer.

    machines: to go down through; all of them unless given.  Raises ValueError for more than there are.
    """
    if machines is not None:
        require_integer("machines", machines, at_least=0, at_most=len(cfg.machines))
    for index in reversed(range(len(cfg.machines) if machines is None else machines)):
        machine = cfg.machines[index]
        top = rbm.mean(
            machine.visible_units, rbm.visible_field(machine, params[f"layer_{index}"], top)
        )
    return top


def fantasies(
    cfg: Config, params: Params, inputs: Array, key: Key[Array, " batch"], steps: int | Array
) -> Float[Array, "batch values"]:
    """What the net dreams: so many Gibbs steps of the highest machine, then the means downwards (Hinton et al. 2006, section 7).

    inputs: where the chains start, [batch, ...].  A net of a single machine dreams as ``zoo.rbm.fantasies`` does.
    Raises ValueError for fewer steps than one, where that is known.
    """
    *below, machine = cfg.machines
    params_top = params[f"layer_{len(below)}"]
    if not below:
        return rbm.fantasies(machine, params_top, inputs, key, steps)
    require_integer("steps", steps)
    start = rbm.states(machine, _upwards(cfg, params, inputs)[-1])
    return down(cfg, params, rbm.sample(machine, params_top, start, key, steps), len(below))


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """The loss of the machines that are trained (see ``zoo.rbm.loss``); those below only pass their means upwards.

    Metrics: "reconstruction_error" and "free_energy" of the highest machine, as the one below it sees the inputs.
    carry: of each machine.
    """
    batch, carry = blank_padding(batch, carry)
    last = len(cfg.machines) - 1
    carries = carry if carry else ((),) * (last + 1)
    total, aux, after = jnp.zeros(()), None, []
    for index, (machine, seen) in enumerate(
        zip(cfg.machines, _upwards(cfg, params, batch["inputs"]), strict=True)
    ):
        if cfg.trains == "top" and index < last:
            after.append(carries[index])
            continue
        # The gradient of contrastive divergence ends at the machine; that of the deterministic loss is one of all that is there.
        seen = seen if key is None and cfg.trains == "all" else jax.lax.stop_gradient(seen)
        keys = None if key is None else jax.vmap(jax.random.fold_in, (0, None))(key, index)
        part, aux = rbm.loss(
            machine,
            params[f"layer_{index}"],
            {**batch, "inputs": seen},
            key=keys,
            carry=carries[index],
        )
        total = total + part
        after.append(aux.carry)
    assert aux is not None
    return total, aux._replace(carry=tuple(after) if cfg.persistent else ())


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Any:
    """The carry of each machine, if they are persistent."""
    if not cfg.persistent:
        return ()
    keys = jax.random.split(key, len(cfg.machines))
    return tuple(
        rbm.init_carry(machine, params[f"layer_{index}"], batch_size, key=keys[index])
        for index, machine in enumerate(cfg.machines)
    )


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random states [batch, sizes[0]]."""
    return rbm.example_batch(cfg.machines[0], key, batch_size)
