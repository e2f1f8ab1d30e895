"""One of the runs that are trained side by side, usually the only one: its history, its checkpoints, what was decided."""

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
    """A run as the loop sees it.  folder and checkpoints are both None for a run in memory.

    label: "" of the only run.  history: the lines of metrics.jsonl.  control: the host's copy of the state's.
    diverged: the step at which the loss or gradient was not finite; it has stood still since.
    on_failure: is told what cannot be written, and the run goes on without; None lets it end the run.
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
        """Whether this run is over before its last step: diverged, or out of patience."""
        assert self.control is not None
        patience = self.recipe.patience
        return self.diverged is not None or (
            patience is not None and int(self.control.stale) >= patience
        )

    def decide(self, values: dict[str, float], step: int, state: TrainState) -> None:
        """Updates the control state after an evaluation; where no checkpoint is sure to, the best parameters are kept here."""
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
            )  # the state itself is donated to the next step

    def best_step(self, step: int, selects: bool) -> int:
        """Of the best evaluation so far; the last step where nothing selects."""
        assert self.control is not None
        return (int(self.control.best_step) if selects else 0) or step

    def save(self, state: TrainState, step: int, selects: bool) -> None:
        """Starts to write a checkpoint, unless that of this step is there."""
        if self.checkpoints and self.saved != step:
            self.checkpoints.save(state, step, self.best_step(step, selects))
            self.saved = step

    def best_value(self) -> float | None:
        """Of the selecting metric, on the validation split."""
        assert self.control is not None
        return float(self.control.best) if int(self.control.best_step) else None


def resume(members: list[Member], abstract: Any, progress: Progress) -> list[TrainState] | None:
    """The states at the newest step whose checkpoints are intact in all members, for all processes; None to begin anew.

    abstract: of one member.  What came after that step is forgotten.  Raises CheckpointError if none of some is intact,
    MisfitError if one is of another state.
    """
    stores = [member.checkpoints for member in members if member.checkpoints]
    steps = set.intersection(*(set(store.steps()) for store in stores))
    if cluster.several():
        steps = set(json.loads(cluster.exchange(json.dumps(sorted(steps)))[0]))
    problems = []
    for step in sorted(steps, reverse=True):
        states, mine = [], ("", False)
        try:
            states = [store.load(abstract, step) for store in stores]
        except CheckpointError as error:
            mine = str(error), isinstance(error, MisfitError)
        everyones = (
            map(json.loads, cluster.exchange(json.dumps(mine))) if cluster.several() else [mine]
        )
        problem, misfit = max(everyones, key=lambda each: (each[1], each[0] != ""))
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
    """Forgets what came after ``step``, damaged or not: the run is about to do it again."""
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
        there, here = folder.config()["versions"], versions()
        changed = [
            f"{name} {there.get(name)} -> {here[name]}"
            for name in here
            if there.get(name) != here[name]
        ]
        if changed:
            progress.say(f"resuming with other versions, so not bit for bit: {', '.join(changed)}")


def compare_members(
    rows: dict[str, dict[str, Any]], select_by: str = "", mode: str = "max"
) -> list[str]:
    """Lines of a table: what each run reached, then mean and deviation of those that did not diverge, and the best of them.

    rows: {label: {"diverged": step or None, metric: value, ...}}.  select_by: the metric that says which is best, if any.
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
