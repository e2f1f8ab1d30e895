"""The protocol that every task in ``evals.tasks`` follows.

A task is a module with these four names:

    TASK       the class in ``train.tasks`` whose runs the module measures
    measure    (Subject) -> Measured: the metrics, and whatever the sections need
    SECTIONS   functions of an Evaluation that return HTML for the report, or None to be left out
    VERBS      {name: (run, options) -> exit status}: verbs of the command line; ``evals.verbs``
               defines their options

``evals.tasks.TASKS`` lists the tasks.  ``evaluate``, the report and the command line use only this
protocol and know no task.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from evals.intervals import wilson
from evals.metrics import name_metrics
from evals.run import Run
from train.dataset import Dataset, Table
from train.tasks import Task

T = TypeVar("T")


class Subject(NamedTuple):
    """The input of ``measure``: a run and one split of a data set.

    means: the metrics of the model's ``loss``, averaged over the split.
    own: whether this is the data set that the run was trained on.
    """

    run: Run
    dataset: Dataset
    split: str
    table: Table
    means: dict[str, float]
    own: bool = True

    @property
    def losses(self) -> dict[str, float]:
        """The metrics of the model's ``loss`` by full name."""
        return name_metrics(self.split, self.means, self.run.recipe.model.outputs.likelihood)

    def named(self, metrics: Mapping[str, T]) -> dict[str, T]:
        """Metrics by full name: {"exact %": 3.0} -> {"test exact %": 3.0}."""
        return {f"{self.split} {name}": value for name, value in metrics.items()}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """The output of ``measure``.  Tasks subclass it to add fields for their sections.

    metrics: by full name, such as "test accuracy %"; the last word is the unit, if any, or a % is
        inside: "test WER % with lexicon".
    note: how metrics were computed, where their names do not tell.
    tokens: number of tokens that metrics are averaged over; None if these are examples.
    shares: {metric: n}: the percentages that are proportions of n independent examples.
    intervals: {metric: (low, high)}: 95 % confidence intervals of others, in the metric's unit.
    """

    metrics: dict[str, float]
    note: str = ""
    tokens: int | None = None
    shares: Mapping[str, int] = dataclasses.field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The measurement of a run.

    example: index of the example that the report shows in detail.
    data_dir: the folder that is searched for data sets first.
    """

    subject: Subject
    measured: Measured
    example: int = 0
    data_dir: str | os.PathLike[str] | None = None

    @property
    def run(self) -> Run:
        """The run that was measured."""
        return self.subject.run

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.subject.split

    @property
    def table(self) -> Table:
        """Raw columns of the split."""
        return self.subject.table

    @property
    def metrics(self) -> dict[str, float]:
        """{"test accuracy %": ...}: the last word is the unit, if any."""
        return self.measured.metrics

    @property
    def note(self) -> str:
        """How metrics were computed, where their names do not tell."""
        return self.measured.note

    @property
    def count(self) -> int:
        """Number of examples in the split."""
        return self.table.size

    @property
    def items(self) -> int:
        """Number of items that metrics are averaged over: tokens for text, else examples."""
        return self.count if self.measured.tokens is None else self.measured.tokens

    @property
    def measured_on(self) -> str:
        """For display: "300 test examples"."""
        what = "examples" if self.measured.tokens is None else "tokens"
        return f"{self.items:,} {self.split} {what}"

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % confidence intervals, measured or of ``shares``: see ``evals.intervals``."""
        ends = dict(self.measured.intervals)
        for name, count in self.measured.shares.items():
            if name in self.metrics:
                low, high = wilson(self.metrics[name] / 100, count)
                ends[name] = 100 * low, 100 * high
        return ends

    @property
    def file(self) -> pathlib.Path:
        """eval.json of the run, for the test split; eval-validation.json, ... for others."""
        return self._file("eval", "json")

    @property
    def report(self) -> pathlib.Path:
        """report.html of the run, named like ``file``."""
        return self._file("report", "html")

    def _file(self, stem: str, suffix: str) -> pathlib.Path:
        parts = [stem]
        if self.split != "test":
            parts.append(self.split)
        if not self.subject.own:
            name = self.subject.dataset.name
            parts.append("on-" + "".join(c if c.isalnum() else "-" for c in name).strip("-"))
        return self.run.folder.path / f"{'-'.join(parts)}.{suffix}"


Section = Callable[[Evaluation], str | None]
Verb = Callable[[Run, Any], int]


class TaskModule(Protocol):
    """The names that a module in ``evals.tasks`` defines: see above."""

    @property
    def TASK(self) -> type[Task]:  # noqa: N802 (a constant of the module)
        """The task class of the runs that it measures."""
        ...

    @property
    def SECTIONS(self) -> Sequence[Section]:  # noqa: N802
        """Sections of the report, in order."""
        ...

    @property
    def VERBS(self) -> Mapping[str, Verb]:  # noqa: N802
        """Verbs of the command line, by name."""
        ...

    def measure(self, subject: Subject) -> Measured:
        """The metrics of a run on a split."""
        ...
