"""Deep belief nets (Hinton, Osindero, Teh 2006).

A stack of restricted Boltzmann machines (RBMs), trained one at a time.  Each learns the hidden
means of the one below as if they were data.  The result is a generative model whose two top layers
form an RBM and whose other layers generate downwards.  The upward pass is a multilayer perceptron
with logistic units; its parameters have the names and shapes of an MLP's, so that an MLP can be
initialised from them (``zoo.parts.parameters.restore_matching``).
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
    """A deep belief net and its learning algorithm.

    sizes: units of every layer, inputs first.
    trains: top trains only the top RBM and fixes those below: the greedy algorithm, one stage per
        layer.  all trains every RBM at once, each on the current output of those below.
    visible_units: of the inputs, bernoulli or gaussian.
    top_units: of the highest layer.  All other layers are bernoulli.
    binarize, steps, persistent, positive_phase, initializer_deviation, compute_dtype: see
        ``zoo.rbm.Config``; binarize applies to the inputs.
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
        """The RBM between each pair of adjacent layers, lowest first."""
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
        """The meaning of the outputs, and the loss."""
        return Outputs("density")

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Allowed range of the inputs; None allows any."""
        return self.machines[0].input_range


PRESETS: dict[str, Config] = {
    "tiny": Config(sizes=(6, 5, 4), trains="all", initializer_deviation=0.5),
    "digits": Config(sizes=(64, 100, 100)),
    # The Matlab DeepLearnToolbox's test_example_DBN (Palm 2012).
    "toolbox": Config(sizes=(784, 100, 100), positive_phase="sampled", initializer_deviation=0.0),
    # Hinton, Osindero and Teh 2006, figure 1, without the labels.
    "mnist": Config(sizes=(784, 500, 500, 2000)),
    # Hinton and Salakhutdinov 2006: unrolls to the deep autoencoder.
    "deep_autoencoder": Config(sizes=(784, 1000, 500, 250, 30), top_units="gaussian"),
}


def init(cfg: Config, key: Array) -> Params:
    """{"layer_0": {"kernel" [in, out], "bias" [out], "visible_bias" [in]}, ...}.

    See ``zoo.rbm.init``.
    """
    keys = jax.random.split(key, len(cfg.machines))
    return {
        f"layer_{index}": rbm.init(machine, keys[index])
        for index, machine in enumerate(cfg.machines)
    }


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, ...] of sizes[0] values each -> the highest layer [batch, sizes[-1]].

    The result is its means, or with a key, its states.
    """
    *below, top = cfg.machines
    return rbm.apply(top, params[f"layer_{len(below)}"], _upwards(cfg, params, inputs)[-1], key=key)


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Means of the highest layer, and "hidden_0", ... [batch, units], "reconstruction".

    "reconstruction" [batch, sizes[0]] is the means of a full downward pass.
    """
    top = apply(cfg, params, inputs)
    hidden = {
        f"hidden_{index}": means
        for index, means in enumerate([*_upwards(cfg, params, inputs)[1:], top])
    }
    return top, {**hidden, "reconstruction": down(cfg, params, top)}


def _upwards(cfg: Config, params: Params, inputs: Array) -> list[Array]:
    """The visible units of each RBM: the inputs, then the hidden means of the RBM below."""
    layers = [inputs]
    for index, machine in enumerate(cfg.machines[:-1]):
        layers.append(rbm.apply(machine, params[f"layer_{index}"], layers[-1]))
    return layers


def down(
    cfg: Config, params: Params, top: Float[Array, "batch units"], machines: int | None = None
) -> Array:
    """Means of the inputs [batch, sizes[0]] given the highest layer, layer by layer.

    machines: number of lowest RBMs to pass through; None is all.  Raises ValueError if there
        are fewer.
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
    """Means of the inputs after ``steps`` Gibbs steps of the top RBM and a downward pass.

    See Hinton et al. 2006, section 7.  For a net with a single RBM, this is ``zoo.rbm.fantasies``.

    inputs: [batch, ...], where the chains start.
    Raises ValueError for fewer than one step, if the number is not traced.
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
    """The loss of the trained RBMs (see ``zoo.rbm.loss``); those below only pass means upwards.

    Metrics: "reconstruction_error" and "free_energy" of the top RBM on the means that it receives.
    carry: of each RBM.
    """
    batch, carry = blank_padding(batch, carry)
    last = len(cfg.machines) - 1
    carries = carry if carry else ((),) * (last + 1)
    total, aux, after = jnp.zeros(()), None, []
    for index, (machine, visible) in enumerate(
        zip(cfg.machines, _upwards(cfg, params, batch["inputs"]), strict=True)
    ):
        if cfg.trains == "top" and index < last:
            after.append(carries[index])
            continue
        # Contrastive divergence trains each RBM separately.  Without a key, the loss is an ordinary
        # function of all trained parameters, and its gradient flows through the whole stack.
        visible = visible if key is None and cfg.trains == "all" else jax.lax.stop_gradient(visible)
        keys = None if key is None else jax.vmap(jax.random.fold_in, (0, None))(key, index)
        part, aux = rbm.loss(
            machine,
            params[f"layer_{index}"],
            {**batch, "inputs": visible},
            key=keys,
            carry=carries[index],
        )
        total = total + part
        after.append(aux.carry)
    assert aux is not None
    return total, aux._replace(carry=tuple(after) if cfg.persistent else ())


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Any:
    """The carry of each RBM, if they are persistent; otherwise ()."""
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
