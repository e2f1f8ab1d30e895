"""Training as a call: ``fit`` for a model and data in a program, ``run`` for a recipe and a folder."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import cluster
from train.batches import MEASURED, Batches, Scaling, fit_scaling, not_streamed
from train.checkpoint import Checkpoints, describe
from train.data import load_data
from train.dataset import Dataset
from train.loop import Interrupts, Loop
from train.member import Member, compare_members, resume
from train.optimizer import build_one_of, trained
from train.parallel import Layout, Parallel
from train.progress import NOT_METRICS, Progress
from train.recipe import Recipe, module_of, to_dict
from train.run_folder import RunFolder, differences, versions, write_json
from train.step import TrainState, init_state, make_step
from train.stream import make_batches
from train.transfer import TRANSFERS, load_params, matching
from zoo.base import Model, Params, leaves_by_path, replace, require_range, shared

EVAL_BATCH, SMALL = 250, 2**14
"""Examples evaluated at a time, where each holds at most SMALL values; of larger ones, as many as in a training batch."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gives back.

    params: of the best evaluation, or of the last step where nothing selects.  state: of the last step.
    history: the lines of metrics.jsonl.  complete: False when a signal ended it; resume with the same call.
    stopped_by: the signal's name, such as "SIGTERM".
    members: the results of runs that were trained side by side, by label, of which this is the first; {} of a single run.
    """

    module: Model
    cfg: Any
    params: Params
    state: TrainState
    history: list[dict[str, Any]]
    complete: bool
    seconds: float
    stopped_by: str | None = None
    members: "dict[str, Result]" = dataclasses.field(default_factory=dict)


def fit(
    module: Model,
    cfg: Any,
    data: str | Dataset | Mapping[str, Any] = "digits",
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

        result = train.fit(zoo.mlp, cfg, {"inputs": x, "targets": y}, epochs=20, optimizer=train.Optimizer(learning_rate=0.05))

    data: the name of a data set, a Dataset, or arrays {"inputs": [n, ...], "targets": [n]}; ``validation``: arrays alike.
    params: start from these.  out: a run folder for checkpoints (starting again there resumes).
    parallel: how to use the devices; all of them unless given.
    settings: fields of train.Recipe: optimizer, batch_size, epochs or steps, seed, preprocess ("none" for arrays), patience,
    init_from (a run folder or a file to start from), ...
    Raises ValueError for bad settings or shapes, and what ``run`` raises, before any step, Diverged when the loss is not finite.
    """
    names = [
        field.name for field in dataclasses.fields(Recipe) if field.name not in ("name", "model", "data", "after", "transfer")
    ]
    for setting in settings:
        if setting not in names:
            raise TypeError(f"fit() has no setting {setting!r}; settings: {', '.join(names)}")
    if isinstance(data, str):
        how = {name: settings[name] for name in ("image_shape", "text", "pairs") if name in settings}
        _check_images(cfg, data, settings.get("image_shape", Recipe.image_shape), settings.get("preprocess", Recipe.preprocess))
        dataset = load_data(data, data_dir, **how)
    elif isinstance(data, Dataset):
        dataset = data
    else:
        tables = {"train": data} | ({} if validation is None else {"validation": validation})
        dataset = Dataset("arrays", {split: jax.tree.map(np.asarray, dict(table)) for split, table in tables.items()})
        settings.setdefault("preprocess", "none")
    if settings.get("init_from") is not None:
        settings["init_from"] = os.fspath(settings["init_from"])
        if params is not None:
            raise ValueError(f"init_from={settings['init_from']!r}, allowed with params: None")
    stage = _prepare(Recipe(name="fit", model=cfg, data=dataset.name, **settings), dataset, module, parallel or Parallel())
    start = _load_start(stage, out) if params is None else _Start(lambda _: params)
    return _run_stage(stage, out, start, _Manner(quiet))


def run(
    recipe: Recipe[Any],
    out: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    parallel: Parallel | None = None,
    timeout: float = math.inf,
    on_save_failure: Literal["stop", "continue"] = "stop",
) -> Result:
    """Runs every stage of a recipe, or goes on where it was interrupted.  Earlier stages lie in ``out/stage-1``, ...

    Every stage takes the recipe's seed, the first one its init_from.  A recipe of several members (replicas, a sweep) trains them
    side by side, each in a folder of its own in ``out``; the result is the first one's, ``Result.members`` has all.
    parallel: how to use the devices; all of them unless given.  timeout: seconds without any progress after which one of several
    processes ends, as the others seem to be stuck.
    on_save_failure: what to do where a checkpoint or the history cannot be written, as on a full disk: stop, or say so and go on
    (a run of a single process only).
    Raises DataError, RunError, CheckpointError, ClusterError, ValueError, OSError before any step, Diverged later.
    """
    recipes = [dataclasses.replace(stage, seed=recipe.seed) for stage in recipe.stages]
    recipes[0] = dataclasses.replace(recipes[0], init_from=recipe.init_from or recipes[0].init_from)
    with cluster.Watchdog(timeout) as watchdog:
        return _run(
            recipes, out, data_dir, parallel or Parallel(), _Manner(quiet, tensorboard, watchdog, on_save_failure == "continue")
        )


def _run(
    recipes: list[Recipe[Any]],
    out: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str] | None,
    parallel: Parallel,
    manner: "_Manner",
) -> Result:
    def prepare() -> list[_Stage]:
        datasets = {}
        for each in recipes:
            how = {name: getattr(each, name) for name in ("image_shape", "text", "pairs")}
            way = (each.data, *how.values())
            _check_images(each.model, each.data, each.image_shape, each.preprocess)
            datasets[way] = datasets.get(way) or load_data(each.data, data_dir, **how)
        ways = [(each.data, each.image_shape, each.text, each.pairs) for each in recipes]
        found = [_prepare(each, datasets[way], module_of(each.model), parallel) for each, way in zip(recipes, ways, strict=True)]
        for earlier, stage in itertools.pairwise(found):
            initial = jax.eval_shape(functools.partial(_transfer, earlier, stage), earlier.abstract.params, stage.abstract.params)
            _check_params(initial, stage.abstract.params)
        return found

    stages = cluster.together(prepare)
    _agree(stages, parallel)
    earlier = [None if out is None else os.path.join(out, f"stage-{number}") for number in range(1, len(stages))]
    folders = [*earlier, out]
    start = cluster.together(lambda: _load_start(stages[0], folders[0]))
    if out is not None:  # another run's folder is refused before the first stage starts
        cluster.together(lambda: RunFolder.create(out, stages[-1].recipe, stages[-1].dataset.fingerprint))
    result = None
    for index, (stage, folder) in enumerate(zip(stages, folders, strict=True)):
        if result is not None:
            fresh = stage.fresh()
            params = _transfer(stages[index - 1], stage, result.params, fresh)
            note = _takes(f"stage {index}", result.params, fresh) if stage.recipe.transfer == "matching" else ""
            start = _Start(lambda _, params=params: params, note)
        result = _run_stage(stage, folder, start, manner)
        if not result.complete:
            break
    assert result is not None
    return result


def _transfer(earlier: "_Stage", stage: "_Stage", params: Params, fresh: Params) -> Params:
    """What a stage starts from, given what the one before it ended with."""
    return TRANSFERS[stage.recipe.transfer](earlier.recipe.model, params, stage.recipe.model, fresh)


class _Manner(NamedTuple):
    """What a person sees of a run, what watches it, and whether it goes on when something cannot be written."""

    quiet: bool = False
    tensorboard: bool = False
    watchdog: cluster.Watchdog = cluster.Watchdog()
    go_on: bool = False


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What one stage of a recipe needs, checked and not yet started.

    members: the recipes that it trains side by side, by label.  build: make_step but for what the layout decides; for several
    members of (index, **how).  abstract, metrics: of one member.
    """

    recipe: Recipe[Any]
    module: Model
    dataset: Dataset
    batches: Batches
    validation: Batches | None
    total: int
    members: dict[str, Recipe[Any]]
    optimizer: Callable[[Any], optax.GradientTransformationExtraArgs]
    build: Callable[..., Callable]
    abstract: TrainState
    metrics: Any

    def key(self, index: int = 0) -> jax.Array:
        """A member's root key."""
        return jax.random.key(list(self.members.values())[index].seed)

    def init(self, index: int = 0, params: Params | None = None) -> TrainState:
        """A member's state before its first step."""
        cfg, key = self.recipe.model, self.key(index)
        return init_state(self.module, cfg, self.optimizer(index), key, self.recipe.batch_size, params)

    def fresh(self, index: int = 0) -> Params:
        """Parameters as the stage draws them itself for a member."""
        return self.init(index).params


class _Start(NamedTuple):
    """What a stage starts from: a member's parameters, None for fresh ones, and what to say about them."""

    params: Callable[[int], Params] | None = None
    note: str = ""


def _agree(stages: list[_Stage], parallel: Parallel) -> None:
    """Raises ClusterError unless all processes are about to do the same, on the same data."""
    if not cluster.several():
        return
    mine = {
        "recipe": [to_dict(stage.recipe) for stage in stages][-1],
        "data_fingerprint": [stage.dataset.fingerprint for stage in stages],
        "versions": versions(),
        "parallel": dataclasses.asdict(parallel),
    }
    all_of_them = [json.loads(text) for text in cluster.exchange(json.dumps(mine))]
    for process, theirs in enumerate(all_of_them):
        different = list(differences(all_of_them[0], theirs))
        if different:
            what = "; ".join(different).replace(" there ", " in process 0 ").replace(" here", f" in process {process}")
            raise cluster.ClusterError(f"the processes want different runs: {what}")


def _load_start(stage: _Stage, out: str | os.PathLike[str] | None) -> _Start:
    """What the recipe's init_from gives; nothing is read where the run has a checkpoint to resume from."""
    source = stage.recipe.init_from
    if source is None or (out is not None and _has_checkpoint(RunFolder(out))):
        return _Start()
    earlier, fresh = load_params(source, stage.recipe.model), stage.fresh()
    try:
        matching(None, earlier, stage.recipe.model, fresh)
    except ValueError as error:
        raise ValueError(f"init_from={source!r}: {error}") from None

    def params(index: int) -> Params:  # what is fresh is each member's own, as in a run of its own
        return matching(None, earlier, stage.recipe.model, stage.fresh(index))

    return _Start(params, _takes(source, earlier, fresh))


def _left_as_drawn(stage: _Stage) -> str:
    """The parts whose parameters, or some of them, are not trained."""
    flags = leaves_by_path(trained(stage.abstract.params, stage.recipe.optimizer.only))
    return ", ".join(dict.fromkeys(path.partition(".")[0] for path, free in flags.items() if not free))


def _takes(source: str, earlier: Params, fresh: Params) -> str:
    takes = shared(earlier, fresh)
    left = [path for path, taken in takes.items() if not taken]
    kept = f"; fresh: {', '.join(left)}" if left else ""
    return f"starting from {source}: {len(takes) - len(left)} of {len(takes)} parameters{kept}"


def _has_checkpoint(folder: RunFolder) -> bool:
    return folder.checkpoints.is_dir() and bool(Checkpoints(folder.checkpoints, read_only=True).steps())


def _prepare(recipe: Recipe[Any], dataset: Dataset, module: Model, parallel: Parallel) -> _Stage:
    """Wrong shapes, classes and metrics are found here, before a folder is made or a step is run."""
    recipe = _with_vocabulary(recipe, dataset)
    cfg, members, only = recipe.model, recipe.members, recipe.optimizer.only
    layout = Layout(parallel, len(members))
    batches, validation = _batches(recipe, dataset, layout)
    total = recipe.steps or max(round(recipe.epochs * batches.steps_per_epoch), 1)
    optimizers = tuple(member.optimizer for member in members.values())

    def optimizer(index: Any) -> optax.GradientTransformationExtraArgs:
        return build_one_of(optimizers, index, total, batches.steps_per_epoch)

    def build(index: Any = 0, **how: Any) -> Callable:
        stops = "freeze" if len(members) > 1 else "note"
        nonfinite = "skip" if recipe.on_nonfinite == "skip" else stops
        return make_step(module, cfg, optimizer(index), recipe.augment, nonfinite=nonfinite, load=batches.load, only=only, **how)

    key = jax.random.key(recipe.seed)
    abstract = jax.eval_shape(lambda: init_state(module, cfg, optimizer(0), key, recipe.batch_size))
    source = batches.example(recipe.batch_size)
    batch = jax.eval_shape(batches.load, source)
    _, metrics = jax.eval_shape(build(), abstract, source, key)
    outputs = jax.eval_shape(lambda params, inputs: module.apply(cfg, params, inputs), abstract.params, batch["inputs"])
    if "accuracy" in metrics:  # otherwise the model does not look at the classes that the data may have
        _check_classes(dataset, outputs)
    _check_range(recipe, dataset, batches.scaling)
    if validation is not None:
        recipe = _with_metric(recipe, [name for name in metrics if name != "nonfinite"])
        members = recipe.members
    return _Stage(recipe, module, dataset, batches, validation, total, members, optimizer, build, abstract, metrics)


def _run_stage(stage: _Stage, out: str | os.PathLike[str] | None, start: _Start, manner: _Manner) -> Result:
    """Trains one stage to its end, or to a signal."""
    recipe, batches, layout = stage.recipe, stage.batches, stage.batches.layout
    many = len(stage.members) > 1
    if start.params is not None:
        _check_params(start.params(0), stage.abstract.params)
    members = [Member(member, label) for label, member in stage.members.items()]
    with contextlib.ExitStack() as stack:
        for each in (batches, stage.validation):
            if each is not None:
                stack.callback(each.close)
        folder, state = None, None
        if out is not None:
            folder = cluster.together(lambda: _open(stage, out, stack))
        # Of several processes, the first one reports.
        events = folder.path if folder and manner.tensorboard and cluster.first() else None
        quiet = manner.quiet or not cluster.first()
        progress = stack.enter_context(Progress(recipe.name, stage.total, batches.steps_per_epoch, quiet, events))
        if folder is not None:
            for member in members:
                # A run that is the only one lies in the folder itself.
                member.folder = cluster.together(lambda member=member: _member_folder(stage, folder, member))
                member.on_failure = _complain if manner.go_on else None
                checkpoints = Checkpoints(member.folder.checkpoints, on_failure=member.on_failure, keep_every=_kept(stage))
                member.checkpoints = stack.enter_context(checkpoints)
            states = resume(members, stage.abstract, progress)
            if states is not None:
                state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if many else states[0]
        if state is None:
            # Copies: the state is donated to the first step, the caller's parameters are not.
            given = [None if start.params is None else start.params(index) for index in range(len(members))]
            states = [stage.init(index, jax.tree.map(jnp.copy, params)) for index, params in enumerate(given)]
            state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if many else states[0]
            if start.note:
                progress.say(start.note)
            elif start.params is None and (left := _left_as_drawn(stage)):
                progress.say(f"not trained, and as they are drawn: {left}; --init-from takes others from a run or a file")
        for note in stage.dataset.notes:
            progress.say(note)
        if not layout.single:
            progress.say(f"training on {layout.describe()}")
        state = layout.put_state(state, recipe.batch_size)
        loop = Loop(
            recipe, stage.module, batches, stage.validation, stage.total, state, members, progress, folder, manner.watchdog
        )
        keys = jnp.stack([stage.key(index) for index in range(len(members))]) if many else stage.key()
        steps = layout.steps(stage.build, recipe.steps_per_dispatch > 1, recipe.batch_size)
        with Interrupts() as interrupts:
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
    print(f"warning: {error}; the run goes on", file=sys.stderr, flush=True)


def _open(stage: _Stage, out: str | os.PathLike[str], stack: contextlib.ExitStack) -> RunFolder:
    folder = RunFolder.create(out, stage.recipe, stage.dataset.fingerprint)
    stack.enter_context(folder.locked())
    folder.write_data(stage.dataset, stage.batches.scaling)
    return folder


def _kept(stage: _Stage) -> int | None:
    """Steps between checkpoints that are kept to the end: a multiple of those between any."""
    recipe, epoch = stage.recipe, stage.batches.steps_per_epoch
    if recipe.keep_every is None:
        return None
    interval = recipe.evaluation_interval(epoch)
    return max(round(recipe.keep_every * epoch / interval), 1) * interval


def _member_folder(stage: _Stage, folder: RunFolder, member: Member) -> RunFolder:
    if not member.label:
        return folder
    own = RunFolder.create(folder.path / member.label, member.recipe, stage.dataset.fingerprint)
    own.write_data(stage.dataset, stage.batches.scaling)
    return own


def _summarise(loop: Loop, folder: RunFolder | None, progress: Progress) -> None:
    """summary.json of every member; of several a table as well, and the group's summary.json."""
    for member in loop.members:
        if member.folder and not member.folder.summary.exists():
            write_json(member.folder.summary, loop.summary(member))
    if loop.many:
        rows = {member.label: {"diverged": member.diverged, **_last_values(loop, member)} for member in loop.members}
        if folder and not folder.summary.exists():
            write_json(folder.summary, {**loop.summary(loop.members[0]), "best_step": None, "best": None, "members": rows})
        for line in compare_members(rows, loop.recipe.select_by, loop.recipe.select_mode):
            progress.say(line)


def _last_values(loop: Loop, member: Member) -> dict[str, float]:
    """Metrics of the member's best step on the validation split, or of its last steps in training."""
    step = loop.best_step(member)
    lines = [line for line in member.history if line["split"] == "validation" and line["step"] == step]
    lines = lines or [line for line in member.history if line["split"] == "train"]
    return {name: value for name, value in lines[-1].items() if name not in NOT_METRICS} if lines else {}


def _batches(recipe: Recipe[Any], dataset: Dataset, layout: Layout) -> tuple[Batches, Batches | None]:
    splits = recipe.train_on.split("+")
    missing = [split for split in splits if split not in dataset.splits]
    if missing:
        raise ValueError(f"data {dataset.name}: train_on={recipe.train_on!r}, but it has only {', '.join(dataset.splits)}")
    table = dataset.joined(*splits)
    scaling = None
    if recipe.preprocess != "none":
        inputs = table["inputs"]
        if isinstance(inputs, dict) and "image" not in inputs:
            raise ValueError(f"preprocess={recipe.preprocess!r}, allowed for inputs of several arrays without an image: none")
        scaling = fit_scaling(recipe.preprocess, inputs["image"] if isinstance(inputs, dict) else inputs, dataset.input_range)
    how = {"scaling": scaling, "layout": layout, "widths": dataset.widths}
    batches = make_batches(table, recipe.batch_size, seed=recipe.seed, labels=recipe.labels, **how)
    held_out = None
    if "validation" in dataset.splits and "validation" not in splits:
        held_out = evaluation_batches(dataset.splits["validation"], recipe.batch_size, scaling, layout, dataset.widths)
    return batches, held_out


def evaluation_batches(
    table: Mapping[str, Any],
    batch_size: int,
    scaling: Scaling | None,
    layout: Layout | None = None,
    widths: Mapping[str, tuple[int, ...]] | None = None,
) -> Batches:
    """All examples of a split in order, in batches that need not be larger than ``batch_size``, the training's."""
    leaves = jax.tree.leaves(table["inputs"])
    # Text is read in as many stretches as in training: every stretch begins without what came before it.  What is in buckets has
    # outputs far larger than its inputs.
    small = max(math.prod(leaf.shape[1:]) for leaf in leaves) <= SMALL and not {"reset", "bucket"} & table.keys()
    rows = min(max(batch_size, EVAL_BATCH if small else 1), len(leaves[0]))
    return make_batches(table, rows, seed=None, scaling=scaling, layout=layout, widths=widths)


def _with_vocabulary(recipe: Recipe[Any], dataset: Dataset) -> Recipe[Any]:
    """The recipe whose model has the vocabularies of the data.  Raises ValueError for data that are for another kind of model."""
    cfg, module = recipe.model, type(recipe.model).__module__
    example = jax.eval_shape(lambda: module_of(cfg).example_batch(cfg, jax.random.key(0), 1))["inputs"]
    have, want = (_described(inputs) for inputs in (dataset.splits["train"]["inputs"], example))
    if have != want:
        raise ValueError(f"data {dataset.name}: inputs are {have}, allowed for {module}: {want}")
    sizes = {"vocabulary": len(dataset.vocabulary)} if dataset.vocabulary else {}
    if "source" in dataset.tokenizers:
        sizes["source_vocabulary"] = len(dataset.tokenizers["source"].vocabulary)
    if sizes and not hasattr(cfg, "vocabulary"):
        raise ValueError(f"data {dataset.name}: tokens, allowed for {module}: data that are no text")
    if sizes and not isinstance(example, dict) and recipe.preprocess != "none":
        raise ValueError(f"recipe {recipe.name}: preprocess={recipe.preprocess!r}, allowed for text: none")
    return dataclasses.replace(recipe, model=replace(cfg, **sizes))


def _check_images(cfg: Any, data: str, image_shape: tuple[int, int, int], preprocess: str) -> None:
    """Raises ValueError for what the model or streaming do not take, before images are decoded, which takes long."""
    if not data.startswith("captions:"):
        return
    if preprocess in MEASURED:
        raise not_streamed(preprocess)
    inputs = jax.eval_shape(lambda: module_of(cfg).example_batch(cfg, jax.random.key(0), 1))["inputs"]
    expected = inputs["image"].shape[1:] if isinstance(inputs, dict) and "image" in inputs else image_shape
    if tuple(image_shape) != expected:
        raise ValueError(f"data {data}: image_shape={image_shape}, allowed for this {type(cfg).__module__}: {expected}")


def _described(inputs: Any) -> str:
    return ", ".join(sorted(inputs)) if isinstance(inputs, dict) else "an array"


def _check_classes(dataset: Dataset, outputs: Any) -> None:
    """Raises ValueError when the targets name a class that the model has no output for: on a device that would go unnoticed."""
    for split, table in dataset.splits.items():
        targets = table.get("targets")
        if not isinstance(outputs, jax.ShapeDtypeStruct) or getattr(targets, "dtype", np.dtype(float)).kind not in "ui":
            continue
        assert targets is not None
        if outputs.ndim == targets.ndim + 1 and not 0 <= targets.min() <= targets.max() < outputs.shape[-1]:
            bad = targets.min() if targets.min() < 0 else targets.max()
            raise ValueError(f"data {dataset.name}: {split} targets hold class {bad}, the model has {outputs.shape[-1]} outputs")


def _check_range(recipe: Recipe[Any], dataset: Dataset, scaling: Scaling | None) -> None:
    """Raises ValueError when inputs, as they are scaled, leave the range that the model says they must lie in."""
    allowed = getattr(recipe.model, "input_range", None)
    if allowed is None:
        return
    for split, table in dataset.splits.items():
        inputs = table["inputs"]
        if isinstance(inputs, dict):
            continue
        if isinstance(inputs, np.ndarray):
            extremes = np.stack([inputs.min(axis=0), inputs.max(axis=0)])
        else:
            low_and_high = np.reshape(dataset.input_range, (2, *[1] * (inputs.ndim - 1)))
            extremes = np.broadcast_to(low_and_high, (2, *inputs.shape[1:]))
        scaled = extremes if scaling is None else np.asarray(scaling(jnp.asarray(extremes)))
        require_range(f"data {dataset.name}: {split} inputs, preprocess={recipe.preprocess!r}", scaled, allowed)


def _check_params(params: Params, expected: Params) -> None:
    """Raises ValueError naming the first leaf that the model does not have, or has in another shape."""
    have, want = describe(params), describe(expected)
    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            raise ValueError(f"params: {path} is {have.get(path, 'missing')}, the model has {want.get(path, 'none')}")


def _with_metric(recipe: Recipe[Any], metrics: list[str]) -> Recipe[Any]:
    if recipe.select_by in metrics:
        return recipe
    if recipe.name == "fit" and recipe.select_by == "accuracy":  # nobody asked for it, and this model has none
        return dataclasses.replace(recipe, select_by="loss", select_mode="min")
    raise ValueError(f"recipe {recipe.name}: select_by={recipe.select_by!r}, allowed: {', '.join(sorted(metrics))}")
