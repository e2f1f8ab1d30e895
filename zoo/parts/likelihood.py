"""The likelihood of a restricted Boltzmann machine: log p(v) = -F(v) - log Z.

The partition function Z sums over all states of both layers.  The sum over one layer has a closed
form, so Z of a small machine can be computed by enumerating the states of the other.  For larger
machines, annealed importance sampling estimates it (Neal 2001; Salakhutdinov and Murray 2008).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, Key

from zoo import rbm
from zoo.base import Params
from zoo.parts.checking import require_integer, require_range, require_shape

MOST_ENUMERATED = 25
CHUNK = 2**12
"""Number of states enumerated at a time."""


class Estimate(NamedTuple):
    """An estimate of log Z.

    log_partition: log Z.  standard_error: that of log_partition.
    log_weights [chains]: log importance weights; their mean weight estimates Z / Z_base.
    """

    log_partition: Array
    standard_error: Array
    log_weights: Array


def enumerable(cfg: rbm.Config) -> bool:
    """Whether ``exact_log_partition`` can sum over the states of one layer."""
    return _enumerated(cfg) is not None


def _enumerated(cfg: rbm.Config) -> str | None:
    sizes = {"visible": cfg.visible, "hidden": cfg.hidden}
    binary = {
        name: size
        for name, size in sizes.items()
        if getattr(cfg, f"{name}_units") == "bernoulli" and size <= MOST_ENUMERATED
    }
    return min(binary, key=binary.__getitem__) if binary else None


@jax.jit
def exact_log_partition(cfg: rbm.Config, params: Params) -> Float[Array, ""]:
    """Log Z by enumeration of the smaller layer; 2^25 states take minutes on a CPU.

    Raises ValueError unless one layer has at most MOST_ENUMERATED units, all Bernoulli.
    """
    layer = _enumerated(cfg)
    if layer is None:
        sizes = f"{cfg.visible} {cfg.visible_units} and {cfg.hidden} {cfg.hidden_units}"
        raise ValueError(
            f"{sizes} units, allowed for an exact partition function: "
            f"a layer of {MOST_ENUMERATED} bernoulli units or fewer"
        )
    if layer == "visible":
        kernel, bias, other_bias, units = (
            params["kernel"],
            params["visible_bias"],
            params["bias"],
            cfg.hidden_units,
        )
    else:
        kernel, bias, other_bias, units = (
            params["kernel"].T,
            params["bias"],
            params["visible_bias"],
            cfg.visible_units,
        )
    count, chunk = 2 ** len(bias), min(2 ** len(bias), CHUNK)

    def log_sum(index: Array) -> Array:
        numbers = index * chunk + jnp.arange(chunk)
        states = ((numbers[:, None] >> jnp.arange(len(bias))[None]) & 1).astype(kernel.dtype)
        normalizers = jnp.sum(
            rbm.log_normalizer(units, other_bias[None] + states @ kernel), axis=-1
        )
        return jax.nn.logsumexp(states @ bias + normalizers)

    # One logsumexp at the end.  Adding the chunks one by one would round a log near 1,000 thousands
    # of times, an error of hundredths of a nat.
    return jax.nn.logsumexp(jax.lax.map(log_sum, jnp.arange(count // chunk)))


def base_rates(cfg: rbm.Config, means: Float[Array, " visible"]) -> Float[Array, " visible"]:
    """Visible biases of a machine without hidden units that has these means.

    means: mean of each unit over the training data.  Bernoulli means are smoothed by adding 5% of
    data, half on and half off, as in the program of Salakhutdinov and Murray.
    Raises ValueError for a wrong number of means, and for concrete Bernoulli means outside 0 to 1.
    """
    require_shape("means", means, (cfg.visible,))
    if cfg.input_range is not None and not isinstance(means, Tracer):
        require_range("means", means, cfg.input_range)
    if cfg.visible_units == "gaussian":
        return means
    smooth = (means + 0.025) / 1.05
    return jnp.log(smooth) - jnp.log1p(-smooth)


def annealed_log_partition(
    cfg: rbm.Config,
    params: Params,
    key: Key[Array, ""],
    *,
    chains: int = 100,
    temperatures: int | Array = 1000,
    base: Float[Array, " visible"],
) -> Estimate:
    """Log Z and its standard error by annealed importance sampling.

    All chains run in parallel, with one Gibbs step at each temperature.  They start from
    independent visible units with biases ``base`` and end at the machine.  The distributions in
    between (Salakhutdinov and Murray 2008, equations 15-18):

        log p_beta(v) = -Q(v) + ((1 - beta) base + beta b) v
                        + sum_j log_normalizer(beta (c + v W)_j)

    base: ``base_rates`` of the training data.  With others, such as the machine's own biases, the
        estimate can be wrong by tens of nats with no sign of it.
    temperatures: number of inverse temperatures between 0 and 1.  More are more accurate, and time
        is proportional to their number.
    The standard error is that of the mean weight (delta method); it does not account for modes that
    no chain has reached.
    Raises ValueError for fewer than two chains, which have no standard error, for less than one
    temperature, and for a wrong shape of ``base``.
    """
    require_integer("chains", chains, at_least=2)
    require_integer("temperatures", temperatures)
    require_shape("base", base, (cfg.visible,))
    return _anneal(cfg, params, key, int(chains), temperatures, base)


@functools.partial(jax.jit, static_argnames=("chains",))
def _anneal(
    cfg: rbm.Config, params: Params, key: Array, chains: int, temperatures: int | Array, base: Array
) -> Estimate:
    keys = jax.random.split(key, chains)
    kernel, bias, visible_bias = params["kernel"], params["bias"][None], params["visible_bias"]
    base = base.astype(kernel.dtype)

    def log_probability(beta: Array, visible: Array, field: Array) -> Array:
        """Without Q(v), which is the same at all temperatures."""
        visible_term = visible @ ((1 - beta) * base + beta * visible_bias)
        return visible_term + jnp.sum(rbm.log_normalizer(cfg.hidden_units, beta * field), axis=-1)

    def anneal(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        visible, log_weights = state
        colder, beta = (index + 1) / temperatures, index / temperatures
        field = visible @ kernel + bias
        log_weights += log_probability(colder, visible, field) - log_probability(
            beta, visible, field
        )
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index + 1)
        hidden_keys, visible_keys = (
            jax.vmap(jax.random.fold_in, (0, None))(step_keys, layer)
            for layer in (rbm.HIDDEN, rbm.VISIBLE)
        )
        hidden = rbm.draw(cfg.hidden_units, colder * field, hidden_keys)
        down = ((1 - colder) * base + colder * visible_bias)[None] + colder * (hidden @ kernel.T)
        return rbm.draw(cfg.visible_units, down, visible_keys), log_weights

    visible = rbm.draw(cfg.visible_units, jnp.broadcast_to(base, (chains, cfg.visible)), keys)
    _, log_weights = jax.lax.fori_loop(
        0, temperatures, anneal, (visible, jnp.zeros(chains, kernel.dtype))
    )
    log_base = jnp.sum(rbm.log_normalizer(cfg.visible_units, base))
    log_base += cfg.hidden * rbm.log_normalizer(cfg.hidden_units, jnp.zeros((), kernel.dtype))
    # Relative to the largest weight, as in logsumexp: exp(log_weights) could overflow.
    largest = jnp.max(log_weights)
    weights = jnp.exp(log_weights - largest)
    error = jnp.std(weights, ddof=1) / jnp.mean(weights) / jnp.sqrt(chains)
    return Estimate(log_base + largest + jnp.log(jnp.mean(weights)), error, log_weights)


def pseudo_log_likelihood(
    cfg: rbm.Config, params: Params, visible: Float[Array, "batch visible"]
) -> Float[Array, " batch"]:
    """Sum over visible units of log p(v_i | all others) for binary states (Besag 1975).

    It needs no partition function:
    log p(v_i | others) = log sigmoid(F(v with unit i flipped) - F(v)).
    Raises ValueError for Gaussian visible units, wrong shapes, and concrete states other than 0, 1.
    """
    require_shape("visible", visible, ("batch", cfg.visible))
    if cfg.visible_units != "bernoulli":
        raise ValueError(
            f"visible_units={cfg.visible_units!r}, allowed for a pseudo-likelihood: 'bernoulli'"
        )
    if not isinstance(visible, Tracer) and (invalid := np.setdiff1d(visible, (0, 1))).size:
        raise ValueError(
            f"visible: {invalid[0]:g}, allowed for a pseudo-likelihood: states, 0 or 1"
        )
    return _pseudo_log_likelihood(cfg, params, visible)


@jax.jit
def _pseudo_log_likelihood(cfg: rbm.Config, params: Params, visible: Array) -> Array:
    field = rbm.hidden_field(cfg, params, visible)
    normalizers = jnp.sum(rbm.log_normalizer(cfg.hidden_units, field), axis=-1)

    def add(unit: Array, total: Array) -> Array:
        change = 1 - 2 * visible[:, unit]
        flipped = field + change[:, None] * params["kernel"][unit][None]
        rise = (
            normalizers
            - jnp.sum(rbm.log_normalizer(cfg.hidden_units, flipped), axis=-1)
            - change * params["visible_bias"][unit]
        )
        return total + jax.nn.log_sigmoid(rise)

    return jax.lax.fori_loop(0, cfg.visible, add, jnp.zeros_like(normalizers))
