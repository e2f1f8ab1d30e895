"""adding:STEPS, copy:STEPS: synthetic tasks that test long-term memory.

adding: output the sum of the two marked numbers of a sequence.  copy: repeat symbols after a delay
of STEPS steps.  50,000 train, 1,000 validation and 5,000 test sequences.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np

from train.data.base import Finder, Form, Source, number
from train.dataset import Columns, Dataset
from train.tasks import Algorithm, Regression

SEED = 2015
SEQUENCES = {"train": 50_000, "validation": 1_000, "test": 5_000}
BLANK, RECALL, COPIED = 0, 1, 10
COPY_SYMBOLS = ("blank", "recall", *"12345678")
"""The tokens of the copy task."""


def adding(steps: int) -> dict[str, Columns]:
    """The adding problem (Hochreiter and Schmidhuber 1997, section 5.4), float32.

    Returns {split: {"inputs" [n, steps, 2], "targets" [n, 1]}, ...}.  Each step has a number,
    uniform in 0..1, and a mark: 1 at one step in each half of the sequence, 0 elsewhere.  The
    target is the sum of the two marked numbers; its variance is 1/6.
    """
    tables = {}
    for index, (split, count) in enumerate(SEQUENCES.items()):
        rng = np.random.default_rng([SEED, index])
        numbers, marks = (
            rng.random((count, steps), np.float32),
            np.zeros((count, steps), np.float32),
        )
        halves = rng.integers(0, steps // 2, count), rng.integers(steps // 2, steps, count)
        rows = np.arange(count)
        for half in halves:
            marks[rows, half] = 1
        targets = (numbers * marks).sum(axis=1, keepdims=True)
        tables[split] = {"inputs": np.stack([numbers, marks], axis=2), "targets": targets}
    return tables


def copy_memory(steps: int) -> dict[str, Columns]:
    """The copy task (Hochreiter and Schmidhuber 1997; Arjovsky et al. 2016, section 4.1), int32.

    Returns {split: {"inputs", "targets" [n, steps + 2 COPIED], "mask"}, ...}: tokens of
    COPY_SYMBOLS.  Inputs are COPIED random symbols (of 8), then ``steps`` blanks, the last one
    replaced by "recall", then COPIED blanks.  Targets are blank, except for the last COPIED steps,
    which repeat the symbols.  A model without memory has a loss of
    COPIED log 8 / (steps + 2 COPIED) nats per step.
    """
    tables = {}
    for index, (split, count) in enumerate(SEQUENCES.items()):
        rng = np.random.default_rng([SEED, index])
        symbols = rng.integers(2, len(COPY_SYMBOLS), (count, COPIED), np.int32)
        inputs = np.full((count, steps + 2 * COPIED), BLANK, np.int32)
        targets = inputs.copy()
        inputs[:, :COPIED], targets[:, -COPIED:] = symbols, symbols
        inputs[:, -COPIED - 1] = RECALL
        tables[split] = {"inputs": inputs, "targets": targets, "mask": np.ones(inputs.shape, bool)}
    return tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """The task and the length of its sequences."""

    kind: ClassVar[str] = "sequences"
    identity: ClassVar[tuple[str, ...]] = ("problem", "steps")
    problem: Literal["adding", "copy"] = "adding"
    steps: int = 100
    """Length of the sequence (adding) or of the delay (copy), 2 to 9999."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        if not 2 <= self.steps <= 9999:
            raise ValueError(f"data.steps={self.steps}, allowed: 2 to 9999")

    def __str__(self) -> str:
        return f"{self.problem}:{self.steps}"


def _adding(rest: str) -> Config:
    return Config(problem="adding", steps=number(rest.removeprefix(":"), 2, 9999, "steps"))


def _copy(rest: str) -> Config:
    return Config(problem="copy", steps=number(rest.removeprefix(":"), 2, 9999, "steps"))


FORMS = {
    "adding": Form("adding:STEPS", "marked numbers and their sum", _adding),
    "copy": Form("copy:STEPS", "symbols to repeat later", _copy),
}
MAKE: dict[str, Callable[[int], dict[str, Columns]]] = {"adding": adding, "copy": copy_memory}


def load(cfg: Config, find: Finder) -> Dataset:
    """See ``adding`` and ``copy_memory``."""
    task = Algorithm(COPY_SYMBOLS) if cfg.problem == "copy" else Regression()
    return Dataset(str(cfg), MAKE[cfg.problem](cfg.steps), task)
