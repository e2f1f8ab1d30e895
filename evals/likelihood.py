"""Metrics of models that are a density: how probable they find data, in nats an example.

Data that are not binary are made so by one draw of fixed keys, unless the model says how: log-likelihoods of different
binarisations are not comparable.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals.evaluation import Restored
from train.step import root_key
from zoo import likelihood, rbm

CHAINS, TEMPERATURES = 400, 10_000
PART = 1000
"""Examples at a time."""


def likelihoods(run: Restored, split: str, table: dict[str, Any], training: dict[str, Any]) -> dict[str, float]:
    """Metrics of a restricted Boltzmann machine on a split.

    "log-likelihood nats": with the exact partition function where it can be enumerated, and then "annealed error nats" says how
    far the annealed estimate of log Z is off; else with that, and "log-likelihood standard error nats" beside.
    "pseudo-likelihood nats": the sum over units of log p(unit | all others), of binary units.
    training: the table whose means the annealing starts from.
    """
    cfg, params = run.recipe.model, run.params
    visible = binary(run, table["inputs"])
    base = likelihood.base_rates(cfg, jnp.asarray(np.mean(_scaled(run, training["inputs"]), axis=0)))
    annealed = likelihood.annealed_log_partition(cfg, params, root_key(0), chains=CHAINS, temperatures=TEMPERATURES, base=base)
    exact = likelihood.exact_log_partition(cfg, params) if likelihood.enumerable(cfg) else None
    log_partition = annealed.log_partition if exact is None else exact
    free_energy = np.concatenate([jax.jit(rbm.free_energy)(cfg, params, part) for part in _parts(visible)])
    named = {"log-likelihood": float(-free_energy.mean(dtype=np.float64) - log_partition)}
    if exact is None:
        named["log-likelihood standard error"] = float(annealed.standard_error)
    else:
        named["annealed error"] = float(annealed.log_partition - exact)
    if cfg.visible_units == "bernoulli":
        pseudo = [likelihood.pseudo_log_likelihood(cfg, params, part) for part in _parts(visible)]
        named["pseudo-likelihood"] = float(np.concatenate(pseudo).mean(dtype=np.float64))
    return {f"{split} {name} nats": value for name, value in named.items()}


def binary(run: Restored, inputs: np.ndarray) -> np.ndarray:
    """Visible states [n, visible] for raw inputs, float32: as the model binarises them, by fixed keys where it draws."""
    cfg = run.recipe.model
    scaled = _scaled(run, inputs)
    states = np.asarray(rbm.states(cfg, jnp.asarray(scaled), jax.random.split(root_key(0), len(scaled))))
    if cfg.visible_units == "bernoulli" and not np.isin(states, (0, 1)).all():
        states = (np.random.default_rng(0).random(states.shape, np.float32) < states).astype(np.float32)
    return states


def _scaled(run: Restored, inputs: np.ndarray) -> np.ndarray:
    scaled = inputs if run.scaling is None else run.scaling(jnp.asarray(inputs))
    return np.asarray(scaled, np.float32).reshape(len(inputs), -1)


def _parts(visible: np.ndarray) -> list[Any]:
    return [jnp.asarray(visible[start : start + PART]) for start in range(0, len(visible), PART)]
