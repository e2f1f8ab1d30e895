"""One of the runs trained in parallel, usually the only one: history, checkpoints, selection."""

import dataclasses
import json
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train.engine import cluster
from train.engine.checkpoint import CheckpointError, Checkpoints, MisfitError
from train.engine.progress import Progress
from train.engine.run_folder import RunFolder, versions
from train.engine.step import Control, TrainState, decide
from train.recipe import Recipe
from zoo.base import Params


@dataclasses.dataclass
class Member:
    """A run as the loop sees it.  ``folder`` and ``checkpoints`` are None for a run in memory.

    label: "" for a single run.  history: the lines of metrics.jsonl.
    control: the host's copy of the control state.
    diverged: the step of the first non-finite loss or gradient, at which the run stopped.
    on_failure: called with write errors, after which the run continues; None: write errors end it.
    """

    recipe: Recipe[Any, Any]
    label: str = ""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    folder: RunFolder | None = None
    checkpoints: Checkpoints | None = None
    control: Control | None = None
    saved: int = -1
    diverged: int | None = None
    best: Params | None = None
    on_failure: Callable[[Exception], None] | None = None

    def record(self, line: dict[str, Any]) -> None:
        """Adds a line to the history, in memory and on disk."""
        self.history.append(line)
        if self.folder is None:
            return
        try:
            self.folder.append_history(line)
        except OSError as error:
            if self.on_failure is None:
                raise
            self.on_failure(error)

    def stopped(self) -> bool:
        """Whether this run ended early: it diverged or its patience is exhausted."""
        assert self.control is not None
        patience = self.recipe.patience
        return self.diverged is not None or (
            patience is not None and int(self.control.stale) >= patience
        )

    def decide(self, values: dict[str, float], step: int, state: TrainState) -> None:
        """Updates the control state after an evaluation.

        Keeps the best parameters in memory if no checkpoint is certain to hold them.
        """
        if self.stopped():
            return
        assert self.control is not None
        optimizer, select_by, mode = (
            self.recipe.optimizer,
            self.recipe.select_by,
            self.recipe.select_mode,
        )
        assert select_by is not None
        assert mode is not None
        control = decide(
            self.control,
            values[select_by],
            step,
            mode,
            plateau_factor=optimizer.plateau_factor,
            plateau_patience=optimizer.plateau_patience,
        )
        self.control = jax.device_get(control)
        if int(control.best_step) == step and (
            self.checkpoints is None or self.on_failure is not None
        ):
            self.best = jax.tree.map(
                jnp.copy, state.params
            )  # copied, because the next step donates the state

    def best_step(self, step: int, selects: bool) -> int:
        """Step of the best evaluation so far; ``step`` if nothing selects."""
        assert self.control is not None
        return (int(self.control.best_step) if selects else 0) or step

    def save(self, state: TrainState, step: int, selects: bool) -> None:
        """Starts writing a checkpoint, unless this step is already saved."""
        if self.checkpoints and self.saved != step:
            self.checkpoints.save(state, step, self.best_step(step, selects))
            self.saved = step

    def best_value(self) -> float | None:
        """Best validation value of the selection metric."""
        assert self.control is not None
        return float(self.control.best) if int(self.control.best_step) else None


def resume(members: list[Member], abstract: Any, progress: Progress) -> list[TrainState] | None:
    """States of the newest step whose checkpoints are intact for all members and processes.

    Returns None if there are no checkpoints.  Deletes history and checkpoints after that step.
    abstract: shapes of one member's state.
    Raises CheckpointError if no step is intact, MisfitError if a checkpoint has another structure.
    """
    stores = [member.checkpoints for member in members if member.checkpoints]
    steps = set.intersection(*(set(store.steps()) for store in stores))
    if cluster.several():
        steps = set(json.loads(cluster.exchange(json.dumps(sorted(steps)))[0]))
    problems = []
    for step in sorted(steps, reverse=True):
        states, local = [], ("", False)
        try:
            states = [store.load(abstract, step) for store in stores]
        except CheckpointError as error:
            local = str(error), isinstance(error, MisfitError)
        problems_of_all = (
            map(json.loads, cluster.exchange(json.dumps(local))) if cluster.several() else [local]
        )
        problem, misfit = max(problems_of_all, key=lambda pair: (pair[1], pair[0] != ""))
        if misfit:
            raise MisfitError(problem)
        if not problem:
            _go_on(members, step, progress)
            return states
        problems.append(problem)
        progress.say(f"damaged checkpoint passed over: {problem}")
    if problems:
        raise CheckpointError(f"no intact checkpoint: {'; '.join(problems)}")
    _go_on(members, -1, progress)
    return None


def _go_on(members: list[Member], step: int, progress: Progress) -> None:
    """Deletes history and checkpoints after ``step``, which the run is about to write again."""
    for member in members:
        assert member.folder is not None
        assert member.checkpoints is not None
        member.checkpoints.drop_after(step)
        member.saved = step
        member.history = cluster.together(
            lambda folder=member.folder: folder.truncate_history(max(step, 0))
        )
    folder = members[0].folder
    if step >= 0 and folder is not None:
        recorded, current = folder.config()["versions"], versions()
        changed = [
            f"{name} {recorded.get(name)} -> {current[name]}"
            for name in current
            if recorded.get(name) != current[name]
        ]
        if changed:
            progress.say(f"resuming with other versions, so not bit for bit: {', '.join(changed)}")


def compare_members(
    rows: dict[str, dict[str, Any]], select_by: str = "", mode: str = "max"
) -> list[str]:
    """A table, as lines, of each run's metrics, with mean, deviation and best of the finite runs.

    rows: {label: {"diverged": step or None, metric: value, ...}}.
    select_by: the metric that determines the best run, if any.
    """
    names = sorted(
        {name for row in rows.values() for name in row} - {"diverged"},
        key=lambda name: (name != select_by, name),
    )
    width = max(len("deviation"), *map(len, rows))
    widths = [max(12, len(name)) for name in names]
    lines = [
        "  ".join(
            [" " * width, *(f"{name:>{room}}" for name, room in zip(names, widths, strict=True))]
        )
    ]
    alive = {label: row for label, row in rows.items() if row["diverged"] is None}

    def line(label: str, values: list[float | None], note: str = "") -> str:
        cells = [
            " " * room if value is None else f"{value:{room}.4f}"
            for value, room in zip(values, widths, strict=True)
        ]
        return "  ".join([f"{label:<{width}}", *cells]) + note

    for label, row in rows.items():
        note = "" if row["diverged"] is None else f"  diverged at step {row['diverged']}"
        lines.append(line(label, [row.get(name) for name in names], note))
    columns = {name: [row[name] for row in alive.values() if name in row] for name in names}
    if len(alive) > 1:
        lines.append(
            line(
                "mean",
                [statistics.fmean(column) if column else None for column in columns.values()],
            )
        )
        lines.append(
            line(
                "deviation",
                [
                    statistics.stdev(column) if len(column) > 1 else None
                    for column in columns.values()
                ],
            )
        )
    ranked = {label: row[select_by] for label, row in alive.items() if select_by in row}
    if ranked:
        best = (max if mode == "max" else min)(ranked, key=ranked.__getitem__)
        lines.append(f"best by {select_by}: {best} ({ranked[best]:.4f})")
    return lines
