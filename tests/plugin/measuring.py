"""Metrics and verbs of the task."""

import dataclasses
from typing import Annotated, Any

import numpy as np
import tyro

from evals.base import Evaluation, Measured, Subject
from evals.report.page import titled
from evals.run import Run
from evals.verbs import Verb
from tests.plugin.task import Bias

TASK = Bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess(Verb):
    """Guesses the bias of a coin from its flips."""

    usage, does = "1 0 1", "guesses the bias of your own coin"
    flips: Annotated[
        tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FLIP [FLIP ...]")
    ]
    """1 for heads, 0 for tails."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Guessed(Measured):
    """guesses: of each coin, float32 [n]."""

    guesses: np.ndarray


def _apply(module: Any, cfg: Any, params: Any, batch: Any) -> Any:
    return module.apply(cfg, params, batch["inputs"])[:, 0]


def measure(subject: Subject) -> Guessed:
    """The metrics of the loss, and how many guesses are within a quarter of the bias."""
    guesses = subject.run.map(_apply, subject.table)
    near = np.abs(guesses - subject.table["targets"][:, 0]) < 0.25
    return Guessed(
        metrics=subject.losses | subject.named({"near %": 100 * float(near.mean())}),
        shares=subject.named({"near %": len(near)}),
        guesses=guesses,
    )


def guessed(evaluation: Evaluation) -> str | None:
    """The first guess."""
    assert isinstance(evaluation.measured, Guessed)
    name, guess = evaluation.table.extras["names"][0], evaluation.measured.guesses[0]
    return titled("Guesses", f"<p>{name}: {guess:.2f}</p>")


def print_guess(run: Run, options: Guess) -> int:
    """Prints the guess."""
    flips = np.array([options.flips], np.float32)
    print(f"{run.task} {run.map(_apply, {'inputs': flips})[0]:.3f}")
    return 0


SECTIONS = (guessed,)
VERBS = {"guess": print_guess}
