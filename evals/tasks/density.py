"""Density estimation: the log-likelihood of the data under the model, in nats per example.

Data that are not binary are sampled once with fixed keys, unless the model defines how to binarise
them: log-likelihoods under different binarisations are not comparable.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals.base import Measured, Subject
from evals.report.checkpoints import free_energies, histograms
from evals.report.maps import feature_maps, first_weights
from evals.run import Run
from evals.tasks.reconstruction import codes, fantasies, reconstructions
from train import tasks
from train.batches import Scaling
from train.engine.step import root_key
from zoo import rbm
from zoo.base import Model, Params
from zoo.parts import likelihood

TASK = tasks.Density
CHAINS, TEMPERATURES = 400, 10_000
PART = 1000
"""Examples at a time."""
IDENTITY = Scaling(np.float32(0), np.float32(1))


def measure(subject: Subject) -> Measured:
    """The metrics of the loss; for a restricted Boltzmann machine also ``likelihoods``."""
    run = subject.run
    named = {}
    if isinstance(run.recipe.model, rbm.Config):  # AIS supports no other model
        training = subject.dataset.splits["train"] if subject.own else subject.table
        named = likelihoods(run, subject.table, training)
    return Measured(metrics=subject.losses | subject.named(named))


def likelihoods(
    run: Run, table: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, float]:
    """Likelihood metrics of a restricted Boltzmann machine on a table.

    "log-likelihood nats": log Z is exact if it can be enumerated, else estimated by annealed
        importance sampling (AIS).
    "annealed error nats": the error of the AIS estimate of log Z, if the exact value is known.
    "log-likelihood standard error nats": that of the AIS estimate, if the exact value is unknown.
    "pseudo-likelihood nats": sum over units of log p(unit | all others), for binary units.

    training: the table whose means define the base distribution of AIS.
    """
    cfg, params = run.recipe.model, run.params
    visible = binary(run, table["inputs"])
    base = likelihood.base_rates(
        cfg, jnp.asarray(np.mean(_scaled(run, training["inputs"]), axis=0))
    )
    annealed = likelihood.annealed_log_partition(
        cfg, params, root_key(0), chains=CHAINS, temperatures=TEMPERATURES, base=base
    )
    exact = likelihood.exact_log_partition(cfg, params) if likelihood.enumerable(cfg) else None
    log_partition = annealed.log_partition if exact is None else exact
    free_energy = _map(run, _free_energy, visible)
    named = {"log-likelihood": float(-free_energy.mean(dtype=np.float64) - log_partition)}
    if exact is None:
        named["log-likelihood standard error"] = float(annealed.standard_error)
    else:
        named["annealed error"] = float(annealed.log_partition - exact)
    if cfg.visible_units == "bernoulli":
        pseudo = _map(run, _pseudo_likelihood, visible)
        named["pseudo-likelihood"] = float(pseudo.mean(dtype=np.float64))
    return {f"{name} nats": value for name, value in named.items()}


def binary(run: Run, inputs: np.ndarray) -> np.ndarray:
    """Visible states [n, visible], float32, of raw inputs; binarised by the model, fixed keys."""
    cfg = run.recipe.model
    scaled = _scaled(run, inputs)
    states = np.asarray(
        rbm.states(cfg, jnp.asarray(scaled), jax.random.split(root_key(0), len(scaled)))
    )
    if cfg.visible_units == "bernoulli" and not np.isin(states, (0, 1)).all():
        states = (np.random.default_rng(0).random(states.shape, np.float32) < states).astype(
            np.float32
        )
    return states


def _scaled(run: Run, inputs: np.ndarray) -> np.ndarray:
    scaled = inputs if run.scaling is None else run.scaling(jnp.asarray(inputs))
    return np.asarray(scaled, np.float32).reshape(len(inputs), -1)


def _map(run: Run, function: Any, visible: np.ndarray) -> np.ndarray:
    """Applies a function to visible states [n, visible] without scaling them again: [n]."""
    unscaled = run._replace(data=run.data._replace(scaling=IDENTITY))
    return unscaled.map(function, {"inputs": visible}, rows=min(PART, len(visible)))


@functools.partial(jax.jit, static_argnums=0)
def _free_energy(module: Model, cfg: Any, params: Params, batch: Any) -> Any:
    return rbm.free_energy(cfg, params, batch["inputs"])


def _pseudo_likelihood(module: Model, cfg: Any, params: Params, batch: Any) -> Any:
    return likelihood.pseudo_log_likelihood(cfg, params, batch["inputs"])


SECTIONS = (
    reconstructions,
    fantasies,
    codes,
    feature_maps,
    first_weights,
    histograms,
    free_energies,
)
VERBS = {}
