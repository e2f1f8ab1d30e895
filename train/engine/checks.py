"""Checks of data and settings, made before creating a folder or running a step."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.batches import Scaling
from train.dataset import Dataset, map_targets
from train.formats import Images
from train.recipe import BLANK, Recipe
from zoo.base import Outputs, Targets
from zoo.parts.checking import require_range

COLUMNS = ("inputs", "targets", "mask", "reset")
"""Columns that any batch may have, see ``zoo.base``."""
NEAR_ONE = 1e-3
"""Tolerance for the sum of a distribution."""


def require_declared(cfg: Any) -> None:
    """Raises ValueError if a model's Config, possibly the user's, lacks a required property."""
    where = f"{type(cfg).__module__}.{type(cfg).__name__}"
    for name in ("outputs", "input_range"):
        if not hasattr(cfg, name):
            raise ValueError(
                f"{where} has no property {name!r}, which training reads: "
                "see Config in zoo.base.Model"
            )
    if not isinstance(cfg.outputs, Outputs):
        raise ValueError(
            f"{where}: outputs={cfg.outputs!r}, "
            "allowed: a zoo.base.Outputs, see Config in zoo.base.Model"
        )


def check_columns(dataset: Dataset, example: Mapping[str, Any]) -> None:
    """Raises ValueError for unused columns and missing targets.

    example: a batch (arrays or shapes) with the columns that the model reads.
    """
    known = {**dict.fromkeys(COLUMNS), **dict.fromkeys(example)}
    for split, table in dataset.tables.items():
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(
                    f"data {dataset.name}: {split} column {name!r}{hint}, "
                    f"allowed: {', '.join(known)}"
                )
        if "targets" in example and "targets" not in table and split in ("train", "validation"):
            raise ValueError(
                f"data {dataset.name}: {split} has no targets, which the model learns; "
                f"it has {', '.join(table)}"
            )


def with_targets(dataset: Dataset, cfg: Any, example: Mapping[str, Any]) -> Dataset:
    """The data with targets as the loss needs them: classes as integers, rows of numbers as floats.

    cfg: its ``outputs.targets`` gives the allowed targets.  example: a batch of the model.
    Raises ValueError for unmasked targets for which the loss is not defined.
    """
    allowed = cfg.outputs.targets
    if allowed is None:
        return dataset
    if allowed.units < 2 and allowed.rows in (None, "distribution"):
        raise ValueError(
            f"model {type(cfg).__module__}: a softmax of {allowed.units} output, "
            "which is always 1, allowed: 2 outputs or more"
            + (", or one with output='logistic'" if allowed.rows else "")
        )
    axes = example["targets"].ndim - int(jnp.issubdtype(example["targets"].dtype, jnp.inexact))

    def checked(split: str, table: Mapping[str, Any]) -> np.ndarray:
        return _checked(
            f"data {dataset.name}: {split} targets",
            table["targets"],
            table.get("mask"),
            axes,
            allowed,
        )

    return map_targets(dataset, checked)


def _checked(where: str, targets: Any, mask: Any, axes: int, allowed: Targets) -> np.ndarray:
    """Checked targets of one split.

    axes: number of axes of integer classes; rows of numbers have one more.
    """
    if not isinstance(targets, np.ndarray):
        raise ValueError(f"{where}: several arrays, allowed: one")
    kind = _kind(targets)
    if kind in "bi" and targets.ndim == axes and (allowed.rows is None or allowed.units > 1):
        targets = targets.astype(np.int32) if kind == "b" else targets
        _unless_hidden(lambda seen: _check_classes(where, seen, allowed), targets, mask, axes)
        return targets
    rows = allowed.rows
    if kind in "bif" and rows and targets.ndim == axes + 1 and targets.shape[-1] == allowed.units:
        targets = targets if kind == "f" else targets.astype(np.float32)
        _unless_hidden(lambda seen: _check_rows(where, seen, rows), targets, mask, axes)
        return targets
    raise ValueError(
        f"{where}: {targets.dtype} {list(targets.shape)}, "
        f"allowed: {_expected(targets, kind, axes, allowed)}"
    )


def _kind(array: Any) -> str:
    """b, i or f for booleans, integers and floats of any size; "?" for anything else."""
    kinds = (("b", jnp.bool_), ("i", jnp.integer), ("f", jnp.floating))
    return next((name for name, kind in kinds if jnp.issubdtype(array.dtype, kind)), "?")


def _expected(targets: Any, kind: str, axes: int, allowed: Targets) -> str:
    """Describes the allowed targets, and how to convert almost correct ones."""
    items, parts = ", ".join([*map(str, targets.shape[:1]), *["..."] * (axes > 1)]), []
    if allowed.rows is None or allowed.units > 1:
        parts.append(f"classes, integers from {allowed.least} to {allowed.units - 1} [{items}]")
        if kind == "f" and targets.ndim == axes and np.array_equal(targets, np.trunc(targets)):
            parts[-1] += ", which .astype(int) makes of these"
        elif kind in "bi" and targets.ndim == axes + 1 and targets.shape[-1] == 1:
            parts[-1] += ", which [..., 0] makes of these"
    if allowed.rows:
        parts.append(f"{_ROWS[allowed.rows]} [{items}, {allowed.units}]")
        if targets.ndim == axes and allowed.units == 1:
            parts[-1] += ", which [..., None] makes of these"
    return "; or ".join(parts)


_ROWS = {
    "numbers": "numbers",
    "probabilities": "probabilities",
    "distribution": "probabilities that sum to 1",
}


def _unless_hidden(check: Callable[[Any], None], array: Any, mask: Any, axes: int) -> None:
    """Checks an array and, if that fails, only its unmasked items.

    The mask is applied only on failure, because that takes ten times as long.
    """
    try:
        check(array)
    except ValueError:
        check(_there(array, mask, axes))


def _there(array: Any, mask: Any, axes: int) -> Any:
    """The unmasked items of an array [*items, ...]; the array itself if nothing is masked."""
    if mask is None or mask.all():
        return array
    mask = mask.any(axis=tuple(range(axes, mask.ndim))) if mask.ndim > axes else mask
    return (
        array[mask] if array.shape[: mask.ndim] == mask.shape else array
    )  # for other shapes, training raises a better error


def _check_classes(where: str, classes: Any, allowed: Targets) -> None:
    if not classes.size:
        return
    least, greatest = classes.min(), classes.max()
    if not allowed.least <= least <= greatest < allowed.units:
        raise ValueError(
            f"{where} hold class {least if least < allowed.least else greatest}, the model has "
            f"{allowed.units} outputs, allowed: {allowed.least} to {allowed.units - 1}"
        )


def _check_rows(where: str, rows: Any, kind: str) -> None:
    if not rows.size:
        return
    least, greatest = rows.min(), rows.max()
    if not np.isfinite(least) or not np.isfinite(greatest):
        raise ValueError(f"{where}: values from {least} to {greatest}, allowed: finite numbers")
    if kind == "numbers":
        return
    require_range(where, np.stack([least, greatest]), (0.0, 1.0))
    if kind == "distribution":
        for part in np.array_split(rows.reshape(-1, rows.shape[-1]), max(rows.size >> 22, 1)):
            sums = part.sum(axis=-1, dtype=np.float64)
            worst = sums[np.argmax(np.abs(sums - 1))]
            if abs(worst - 1) > NEAR_ONE:
                raise ValueError(
                    f"{where}: a row whose sum is {worst:g}, "
                    "allowed for softmax outputs: rows whose sum is 1"
                )


def check_inputs(recipe: Recipe[Any, Any], dataset: Dataset, scaling: Scaling | None) -> None:
    """Raises ValueError if scaled inputs are outside the model's ``input_range``."""
    allowed = recipe.model.input_range
    if allowed is None:
        return
    for split, table in dataset.tables.items():
        where = f"data {dataset.name}: {split} inputs"
        inputs = table["inputs"]
        if not all(leaf.shape[0] for leaf in jax.tree.leaves(inputs)):
            continue
        if isinstance(allowed, Mapping):
            for name, values in allowed.items():
                require_range(f"{where}.{name}", _extremes(inputs[name]), values)
            continue
        if isinstance(inputs, Images):
            low_and_high = np.reshape(dataset.input_range, (2, *[1] * (inputs.ndim - 1)))
            extremes = np.broadcast_to(low_and_high, (2, *inputs.shape[1:]))
        else:
            mask = table.get("mask")
            axes = 1 if scaling is not None or mask is None else min(mask.ndim, inputs.ndim)
            inputs = _there(inputs, mask, axes)
            extremes = _extremes(inputs, None if scaling is None else 0)
        scaled = extremes if scaling is None else np.asarray(scaling(jnp.asarray(extremes)))
        require_range(f"{where}, preprocess={recipe.preprocess!r}", scaled, allowed)


def _extremes(array: Any, axis: int | None = None) -> np.ndarray:
    return np.stack([array.min(axis=axis), array.max(axis=axis)])


# ---------------------------------------------------------------- unused settings


class Run(NamedTuple):
    """A run, to decide which settings it uses.

    validates: whether it has a separate validation split.  kept: whether it has a run folder.
    """

    recipe: Recipe[Any, Any]
    validates: bool
    kept: bool


READ: dict[str, tuple[str, Callable[[Run], bool]]] = {
    "patience": ("a validation split", lambda run: run.validates),
    "optimizer.plateau_factor": ("a validation split", lambda run: run.validates),
    "optimizer.plateau_patience": (
        "a plateau_factor below 1",
        lambda run: run.recipe.optimizer.plateau_factor < 1,
    ),
    "select_by": ("a validation split", lambda run: run.validates),
    "select_mode": ("a validation split", lambda run: run.validates),
    "keep_every": ("a run folder", lambda run: run.kept),
    "transfer": ("a stage before", lambda run: run.recipe.after is not None),
    "optimizer.decay": ("a schedule", lambda run: run.recipe.optimizer.schedule != "constant"),
    "optimizer.decay_every": (
        "schedule='step'",
        lambda run: run.recipe.optimizer.schedule == "step",
    ),
    "optimizer.momentum_epochs": (
        "momentum_start",
        lambda run: run.recipe.optimizer.momentum_start is not None,
    ),
    "optimizer.nesterov": (
        "momentum",
        lambda run: (
            run.recipe.optimizer.momentum > 0 or run.recipe.optimizer.momentum_start is not None
        ),
    ),
    "augment.smoothness": ("elastic", lambda run: run.recipe.augment.elastic > 0),
    "augment.masks": (
        "mask_bands or mask_frames",
        lambda run: run.recipe.augment.mask_bands > 0 or run.recipe.augment.mask_frames > 0,
    ),
    "data.coefficients": ("features='mfcc'", lambda run: run.recipe.data.features == "mfcc"),
    "data.subwords": ("tokens='subwords'", lambda run: run.recipe.data.tokens == "subwords"),
    "data.min_count": (
        "tokens 'words' or 'characters'",
        lambda run: run.recipe.data.tokens != "subwords",
    ),
}
"""Settings with a prerequisite: {setting: (name of the prerequisite, whether a run meets it)}."""
NEVER_IDLE = ("patience", "optimizer.plateau_factor")
"""Settings that must not be ignored even in registered recipes, as that would change the run."""


def check_read(recipe: Recipe[Any, Any], *, validates: bool, kept: bool) -> None:
    """Raises ValueError for a setting that the user has changed but the run does not use.

    Changed means different from the default and from the registered recipe of the same name, whose
    settings may be meant for use with other options.
    """
    author = next((stage for stage in registered() if stage.name == recipe.name), BLANK)
    for member in recipe.members.values():
        for path, (other, reads) in READ.items():
            value, default = _setting(member, path)
            if value is _ABSENT:  # an option of another kind of data
                continue
            authors, _ = _setting(author, path)
            changed = value != default and (path in NEVER_IDLE or value != authors)
            if changed and not reads(Run(member, validates, kept)):
                raise ValueError(
                    f"recipe {recipe.name}: {path}={value!r}, allowed without {other}: {default!r}"
                )


_ABSENT = object()


def _setting(recipe: Recipe[Any, Any], path: str) -> tuple[Any, Any]:
    """The value of a setting and its default; (_ABSENT, None) if the recipe's data lack it."""
    group, _, name = path.rpartition(".")
    holder = getattr(recipe, group) if group else recipe
    defaults = {field.name: field.default for field in dataclasses.fields(holder)}
    return vars(holder).get(name, _ABSENT), defaults.get(name)


def registered() -> Iterable[Recipe[Any, Any]]:
    """Every registered recipe and its earlier stages."""
    from train.recipes import RECIPES

    return (stage for recipe in RECIPES.values() for stage in recipe.stages)
