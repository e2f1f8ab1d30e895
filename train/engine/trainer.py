"""Entry points of training: ``fit`` takes a model and data, ``run`` a recipe and a folder."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from train.data import Source, arrays, load_data, parse
from train.dataset import Dataset
from train.engine import cluster
from train.engine.checkpoint import Checkpoints
from train.engine.loop import Interrupts, Loop
from train.engine.member import Member, compare_members, resume
from train.engine.optimizer import trained
from train.engine.parallel import Parallel
from train.engine.progress import NOT_METRICS, Progress, summary_writer
from train.engine.run_folder import RunFolder, differences, jax_settings, versions, write_json
from train.engine.stage import Stage, check_params, prepare, relabelled
from train.engine.step import TrainState
from train.recipe import Recipe, module_of, to_dict
from train.transfer import TRANSFERS, load_params, matching
from zoo.base import Model, Params
from zoo.parts.parameters import leaves_by_path, shared


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    params: parameters of the best evaluation; of the last step without validation.
    state: training state of the last step.
    history: the lines of metrics.jsonl.
    complete: False if a signal stopped the run; the same call resumes it.
    stopped_by: the signal's name, such as "SIGTERM".
    members: {label: result} of runs trained in parallel, the first of which is this result; {} for
        a single run.
    """

    module: Model
    cfg: Any
    # Not shown: a notebook would print every array.
    params: Params = dataclasses.field(repr=False)
    state: TrainState = dataclasses.field(repr=False)
    history: list[dict[str, Any]] = dataclasses.field(repr=False)
    complete: bool
    seconds: float
    stopped_by: str | None = None
    members: "dict[str, Result]" = dataclasses.field(default_factory=dict)


def fit(
    module: Model,
    cfg: Any,
    data: str | Source | Dataset | Mapping[str, Any] = "digits",
    *,
    validation: Mapping[str, Any] | None = None,
    params: Params | None = None,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = True,
    parallel: Parallel | None = None,
    **settings: Any,
) -> Result:
    """Trains a model and returns its best parameters::

        result = train.fit(
            zoo.mlp,
            cfg,
            {"inputs": x, "targets": y},
            epochs=20,
            optimizer=train.Optimizer(learning_rate=0.05),
        )

    data: the name of a data set, the Config of a kind (see ``train.data``), a Dataset, or arrays
        {"inputs": [n, ...], "targets": [n]}, optionally with "mask" or "reset" (see ``zoo.base``).
    validation: arrays in the same format.
    params: initial parameters.
    out: a run folder for checkpoints; the same call with the same folder resumes.
    parallel: how to use the devices; by default all of them.
    settings: fields of train.Recipe: optimizer, batch_size, epochs or steps, seed, preprocess
        ("none" for arrays), patience, init_from (a run folder or file to start from), ...

    Before the first step, raises ValueError for invalid settings or shapes, and whatever ``run``
    raises; Diverged if the loss or gradient is not finite.

    Example::

        >>> import jax
        >>> import train
        >>> import zoo
        >>> mlp, cfg = zoo.create("mlp/tiny")
        >>> batch = mlp.example_batch(cfg, jax.random.key(0), 8)
        >>> examples = {name: batch[name] for name in ("inputs", "targets")}
        >>> result = train.fit(mlp, cfg, examples, batch_size=8, steps=2)
        >>> [row["step"] for row in result.history], sorted(result.params)
        ([1, 2], ['layer_0', 'layer_1', 'layer_2'])
    """
    if out is not None:
        RunFolder(out).require_writable()
    names = [
        field.name
        for field in dataclasses.fields(Recipe)
        if field.name not in ("name", "model", "data", "after", "transfer", "relabel")
    ]
    for setting in settings:
        if setting not in names:
            raise TypeError(f"fit() has no setting {setting!r}; settings: {', '.join(names)}")
    if not isinstance(data, str | Source | Dataset):
        settings.setdefault("preprocess", "none")
    elif validation is not None:
        raise ValueError(
            "validation: arrays, allowed with a data set, which has its own splits: None"
        )
    recipe = Recipe(name="fit", model=cfg, **settings)
    if recipe.init_from is not None and params is not None:
        raise ValueError(f"init_from={recipe.init_from!r}, allowed with params: None")
    dataset, source = _data(data, validation, data_dir, recipe)
    recipe = dataclasses.replace(recipe, data=source)
    stage = prepare(recipe, dataset, module, parallel or Parallel(), kept=out is not None)
    start = _load_start(stage, out) if params is None else _Start(lambda _: params)
    return _run_stage(stage, out, start, _Manner(quiet), Interrupts())


def _data(
    data: Any, validation: Any, data_dir: Any, recipe: Recipe[Any, Any]
) -> tuple[Dataset, Source]:
    """The dataset given to ``fit`` and its Config."""
    if isinstance(data, str | Source):
        source = parse(data) if isinstance(data, str) else data
        source.check(recipe.model, recipe.preprocess)
        return load_data(source, data_dir), source
    if not isinstance(data, Dataset):
        tables = {"train": data} | ({} if validation is None else {"validation": validation})
        data = Dataset("arrays", tables)
    return data, data.source or arrays.Config(name=data.name)


def run(
    recipe: Recipe[Any, Any],
    out: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    parallel: Parallel | None = None,
    timeout: float = math.inf,
    on_save_failure: Literal["stop", "continue"] = "stop",
) -> Result:
    """Runs or resumes every stage of a recipe.  Earlier stages are in ``out/stage-1``, ...

    All stages use the recipe's seed; the first one uses its init_from.  The members of a recipe
    (replicas or a sweep) are trained in parallel, each in its own subfolder of ``out``; the result
    is that of the first, and ``Result.members`` holds all.

    parallel: how to use the devices; by default all of them.
    timeout: with several processes, seconds without progress after which this one ends, because
        another seems to be stuck.
    on_save_failure: if a checkpoint or the history cannot be written (e.g. disk full): stop, or
        print a warning and continue (single process only).

    Raises DataError, RunError, CheckpointError, ClusterError, ValueError or OSError before the
    first step, and Diverged later.
    """
    recipes = [dataclasses.replace(stage, seed=recipe.seed) for stage in recipe.stages]
    recipes[0] = dataclasses.replace(recipes[0], init_from=recipe.init_from or recipes[0].init_from)
    with cluster.Watchdog(timeout) as watchdog:
        return _run(
            recipes,
            out,
            data_dir,
            parallel or Parallel(),
            _Manner(quiet, tensorboard, watchdog, on_save_failure == "continue"),
        )


def _run(
    recipes: list[Recipe[Any, Any]],
    out: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str] | None,
    parallel: Parallel,
    manner: "_Manner",
) -> Result:
    def prepared(recipe: Recipe[Any, Any], dataset: Dataset) -> Stage:
        module = module_of(recipe.model)
        return prepare(recipe, dataset, module, parallel, kept=out is not None)

    def prepare_all() -> list[Stage]:
        if out is not None:
            RunFolder(out).require_writable()
        if manner.tensorboard:
            summary_writer()
        datasets: dict[Source, Dataset] = {}
        for recipe in recipes:
            recipe.data.check(recipe.model, recipe.preprocess)
            datasets[recipe.data] = datasets.get(recipe.data) or load_data(recipe.data, data_dir)
        stages = [prepared(recipe, datasets[recipe.data]) for recipe in recipes]
        for earlier, stage in itertools.pairwise(stages):
            initial = jax.eval_shape(
                functools.partial(_transfer, earlier, stage),
                earlier.abstract.params,
                stage.abstract.params,
            )
            check_params(initial, stage.abstract.params)
        return stages

    stages = cluster.together(prepare_all)
    _agree(stages, parallel)
    earlier = [
        None if out is None else os.path.join(out, f"stage-{number}")
        for number in range(1, len(stages))
    ]
    folders = [*earlier, out]
    start = cluster.together(lambda: _load_start(stages[0], folders[0]))
    if out is not None:  # reject the folder of another run before the first stage starts
        cluster.together(
            lambda: RunFolder.create(out, stages[-1].recipe, stages[-1].dataset.fingerprint)
        )
    result, interrupts = None, Interrupts()
    for index, (stage, folder) in enumerate(zip(stages, folders, strict=True)):
        if result is not None:
            if stage.recipe.relabel:
                stage = prepared(recipes[index], relabelled(stages[index - 1], result.params))
                stages[index] = stage
            fresh = stage.fresh()
            params = _transfer(stages[index - 1], stage, result.params, fresh)
            note = (
                _takes(f"stage {index}", result.params, fresh)
                if stage.recipe.transfer == "matching"
                else ""
            )
            start = _Start(lambda _, params=params: params, note)
        result = _run_stage(stage, folder, start, manner, interrupts)
        if not result.complete:
            break
        if (
            interrupts.received is not None and stage is not stages[-1] and not cluster.several()
        ):  # the signal arrived after the stage's last step
            result = dataclasses.replace(
                result, complete=False, stopped_by=signal.Signals(interrupts.received).name
            )
            break
    assert result is not None
    return result


def _transfer(earlier: Stage, stage: Stage, params: Params, fresh: Params) -> Params:
    """Initial parameters of a stage from the previous stage's ``params``."""
    return TRANSFERS[stage.recipe.transfer](earlier.recipe.model, params, stage.recipe.model, fresh)


class _Manner(NamedTuple):
    """Options that do not change the result: console output, watchdog, and ``go_on``.

    go_on: whether to continue when a write fails.
    """

    quiet: bool = False
    tensorboard: bool = False
    watchdog: cluster.Watchdog = cluster.Watchdog()
    go_on: bool = False


class _Start(NamedTuple):
    """Initial parameters of a stage by member (None: freshly drawn), and a note for the user."""

    params: Callable[[int], Params] | None = None
    note: str = ""


def _agree(stages: list[Stage], parallel: Parallel) -> None:
    """Raises ClusterError unless all processes have the same recipe, data and versions."""
    if not cluster.several():
        return
    local = {
        "recipe": [to_dict(stage.recipe) for stage in stages][-1],
        "data_fingerprint": [stage.dataset.fingerprint for stage in stages],
        "jax": jax_settings(),
        "versions": versions(),
        "parallel": dataclasses.asdict(parallel),
    }
    all_of_them = [json.loads(text) for text in cluster.exchange(json.dumps(local))]
    for process, theirs in enumerate(all_of_them):
        different = list(differences(all_of_them[0], theirs))
        if different:
            details = (
                "; ".join(different)
                .replace(" there ", " in process 0 ")
                .replace(" here", f" in process {process}")
            )
            raise cluster.ClusterError(f"the processes want different runs: {details}")


def _load_start(stage: Stage, out: str | os.PathLike[str] | None) -> _Start:
    """Initial parameters from the recipe's init_from, unless a checkpoint will be resumed."""
    source = stage.recipe.init_from
    if source is None or (out is not None and _has_checkpoint(RunFolder(out))):
        return _Start()
    earlier, fresh = load_params(source, stage.recipe.model), stage.fresh()
    try:
        matching(None, earlier, stage.recipe.model, fresh)
    except ValueError as error:
        raise ValueError(f"init_from={source!r}: {error}") from None

    def params(index: int) -> Params:  # each member draws its own fresh leaves, as if run alone
        return matching(None, earlier, stage.recipe.model, stage.fresh(index))

    return _Start(params, _takes(source, earlier, fresh))


def _left_as_drawn(stage: Stage) -> str:
    """Names of the parts with frozen parameters."""
    flags = leaves_by_path(trained(stage.abstract.params, stage.recipe.optimizer.only))
    return ", ".join(
        dict.fromkeys(path.partition(".")[0] for path, free in flags.items() if not free)
    )


def _takes(source: str, earlier: Params, fresh: Params) -> str:
    takes = shared(earlier, fresh)
    left = [path for path, taken in takes.items() if not taken]
    kept = f"; fresh: {', '.join(left)}" if left else ""
    return f"starting from {source}: {len(takes) - len(left)} of {len(takes)} parameters{kept}"


def _has_checkpoint(folder: RunFolder) -> bool:
    return folder.checkpoints.is_dir() and bool(
        Checkpoints(folder.checkpoints, read_only=True).steps()
    )


def _run_stage(
    stage: Stage,
    out: str | os.PathLike[str] | None,
    start: _Start,
    manner: _Manner,
    interrupts: Interrupts,
) -> Result:
    """Trains one stage to its end or until a signal."""
    recipe, batches, layout = stage.recipe, stage.batches, stage.batches.layout
    many = len(stage.members) > 1
    if start.params is not None:
        check_params(start.params(0), stage.abstract.params)
    members = [Member(member, label) for label, member in stage.members.items()]
    with contextlib.ExitStack() as stack:
        stack.push(interrupts)  # exits last, after everything is saved
        for source in (batches, stage.validation):
            if source is not None:
                stack.callback(source.close)
        folder, state = None, None
        if out is not None:
            folder = cluster.together(lambda: _open(stage, out, stack))
        # Only the first process reports.
        events = folder.path if folder and manner.tensorboard and cluster.first() else None
        quiet = manner.quiet or not cluster.first()
        progress = stack.enter_context(
            Progress(recipe.name, stage.total, batches.steps_per_epoch, quiet, events)
        )
        if folder is not None:
            for member in members:
                # A single run uses the folder itself, members of a group use subfolders.
                member.folder = cluster.together(
                    lambda member=member: _member_folder(stage, folder, member)
                )
                member.on_failure = _complain if manner.go_on else None
                checkpoints = Checkpoints(
                    member.folder.checkpoints, on_failure=member.on_failure, keep_every=_kept(stage)
                )
                member.checkpoints = stack.enter_context(checkpoints)
            states = resume(members, stage.abstract, progress)
            if states is not None:
                state = (
                    jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if many else states[0]
                )
        if state is None:
            # Copied, because the first step donates the state, and the caller keeps its parameters.
            initial = [
                None if start.params is None else start.params(index)
                for index in range(len(members))
            ]
            states = [
                stage.init(index, jax.tree.map(jnp.copy, params))
                for index, params in enumerate(initial)
            ]
            state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if many else states[0]
            if start.note:
                progress.say(start.note)
            elif start.params is None and (left := _left_as_drawn(stage)):
                progress.say(
                    f"frozen at random initialisation: {left}; "
                    "--init-from loads parameters from a run or file"
                )
        for note in stage.dataset.notes:
            progress.say(note)
        if not layout.single:
            progress.say(f"training on {layout.describe()}")
        state = layout.place_state(state, recipe.batch_size)
        loop = Loop(
            recipe,
            stage.module,
            batches,
            stage.validation,
            stage.total,
            state,
            members,
            progress,
            folder,
            manner.watchdog,
        )
        keys = (
            jnp.stack([stage.key(index) for index in range(len(members))]) if many else stage.key()
        )
        steps = layout.steps(stage.build, recipe.steps_per_dispatch > 1, recipe.batch_size)
        interrupts.take()
        loop.run(steps, stage.metrics, keys, interrupts)
        params = [loop.best_params(index) for index in range(len(members))]
        if loop.complete() and cluster.first():
            _summarise(loop, folder, progress)
    results = [
        Result(
            stage.module,
            recipe.model,
            best,
            loop.member_state(index),
            member.history,
            loop.complete(),
            loop.seconds(),
            loop.stopped_by,
        )
        for index, (member, best) in enumerate(zip(members, params, strict=True))
    ]
    labelled = dict(zip(stage.members, results, strict=True)) if many else {}
    return dataclasses.replace(results[0], state=layout.local(results[0].state), members=labelled)


def _complain(error: Exception) -> None:
    print(f"warning: {error}; the run continues", file=sys.stderr, flush=True)


def _open(stage: Stage, out: str | os.PathLike[str], stack: contextlib.ExitStack) -> RunFolder:
    folder = RunFolder.create(out, stage.recipe, stage.dataset.fingerprint)
    stack.enter_context(folder.locked())
    folder.write_data(stage.dataset, stage.task, stage.batches.scaling)
    return folder


def _kept(stage: Stage) -> int | None:
    """``keep_every`` in steps, rounded to a multiple of the evaluation interval."""
    recipe, epoch = stage.recipe, stage.batches.steps_per_epoch
    if recipe.keep_every is None:
        return None
    interval = recipe.evaluation_interval(epoch)
    return max(round(recipe.keep_every * epoch / interval), 1) * interval


def _member_folder(stage: Stage, folder: RunFolder, member: Member) -> RunFolder:
    if not member.label:
        return folder
    subfolder = RunFolder.create(
        folder.path / member.label, member.recipe, stage.dataset.fingerprint
    )
    subfolder.write_data(stage.dataset, stage.task, stage.batches.scaling)
    return subfolder


def _summarise(loop: Loop, folder: RunFolder | None, progress: Progress) -> None:
    """Writes each member's summary.json; with several, also the group's, and prints a table."""
    for member in loop.members:
        if member.folder and not member.folder.summary.exists():
            write_json(member.folder.summary, loop.summary(member))
    if loop.many:
        rows = {
            member.label: {"diverged": member.diverged, **_last_values(loop, member)}
            for member in loop.members
        }
        if folder and not folder.summary.exists():
            write_json(
                folder.summary,
                {**loop.summary(loop.members[0]), "best_step": None, "best": None, "members": rows},
            )
        for line in compare_members(
            rows, loop.recipe.select_by or "", loop.recipe.select_mode or "max"
        ):
            progress.say(line)


def _last_values(loop: Loop, member: Member) -> dict[str, float]:
    """Validation metrics of the member's best step, or else its last training metrics."""
    step = loop.best_step(member)
    lines = [
        line for line in member.history if line["split"] == "validation" and line["step"] == step
    ]
    lines = lines or [line for line in member.history if line["split"] == "train"]
    return (
        {name: value for name, value in lines[-1].items() if name not in NOT_METRICS}
        if lines
        else {}
    )
