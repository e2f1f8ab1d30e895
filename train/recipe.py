"""Recipes as values: all settings that determine a result, and the result to expect."""

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import cattrs
from tyro.conf import Suppress

from train import data
from train.augment import Augment
from train.data import digits
from train.engine.optimizer import Optimizer, numeric_fields
from train.settings import settle, shown
from zoo.base import Model
from zoo.parts.checking import plain

Preprocess = Literal["none", "unit", "standardize", "zscore", "imagenet"]
C = TypeVar("C")
D = TypeVar("D")
Mode = Literal["max", "min"]
BETTER: dict[str, Mode] = {
    "accuracy": "max",
    "label_error": "min",
    "loss": "min",
    "reconstruction_error": "min",
    "squared_error": "min",
}
"""Direction of the models' metrics.  Metrics not listed, such as a free energy, have none."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A result that a recipe reaches: the metric, the published value, and our bounds.

    metric: its name includes the unit.
    published_kind: "result" if the source reports the value for its own training, "bound" if its
    tests assert that the metric is below the value.
    at_most, at_least: the bound that every run should meet; which of the two is set gives the
    direction of the metric.
    """

    metric: str
    published: float | None = None
    published_kind: Literal["result", "bound"] = "result"
    source: str = ""
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        settle(self, f"target {self.metric}: ")
        if self.published_kind == "bound" and (
            self.published is None or self.less_is_better is not True
        ):
            raise ValueError(
                f"target {self.metric}: published_kind='bound', "
                "allowed only with published and at_most"
            )

    @property
    def less_is_better(self) -> bool | None:
        """Direction of the metric; None if neither or both of our bounds are set."""
        return (
            None if (self.at_most is None) == (self.at_least is None) else self.at_most is not None
        )

    def as_published(self, value: float) -> bool | None:
        """Whether a value is at least as good as the published one, or below the published bound.

        None if nothing is published or the metric has no direction.
        """
        if self.published is None or self.less_is_better is None:
            return None
        if self.published_kind == "bound":
            return value < self.published
        return value <= self.published if self.less_is_better else value >= self.published

    def __str__(self) -> str:
        """For lists: "test error % <= 1.7 (published 1.65, LISA tutorials)"."""
        bound = f" <= {self.at_most:g}" if self.at_most is not None else ""
        bound += f" >= {self.at_least:g}" if self.at_least is not None else ""
        kind = "asserted < " if self.published_kind == "bound" else "published "
        published = f"{kind}{self.published:g}" if self.published is not None else ""
        note = ", ".join(part for part in (published, self.source) if part)
        return self.metric + bound + (f" ({note})" if note else "")


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[C, D]):
    """A training run as data.  Numbers of epochs may be fractions."""

    name: Suppress[str]
    """Name of the recipe; also the default name of the run folder."""
    about: Suppress[str] = ""
    """One-line description and source, for lists."""
    model: C
    """The Config of a model; it determines the model's module."""
    data: D = digits.Config()  # noqa: RUF009 (frozen)  # pyright: ignore[reportAssignmentType]
    """The Config of a kind of data (see ``train.data``), with options --data.*.
    --data KIND, e.g. folder:DIR, chooses another kind (see docs/training.md)."""
    preprocess: Preprocess = "unit"
    """unit: scale to 0..1.  standardize: mean 0 and deviation 1 over all inputs together.
    zscore: mean 0 and deviation 1 of each input.  imagenet: as torchvision's weights expect."""
    train_on: Literal["train", "train+validation"] = "train"
    """Split to train on; papers often select hyperparameters, then train on both."""
    labels: int | None = None
    """Train on this many examples only, the same number per class, drawn with the seed."""
    augment: Augment = Augment()  # noqa: RUF009 (frozen)
    """Random deformations of the training inputs."""
    optimizer: Optimizer = Optimizer()  # noqa: RUF009 (frozen)
    """The optimizer and its schedules."""
    batch_size: int = 128
    epochs: float = 10.0
    steps: int | None = None
    """Number of steps; takes precedence over epochs."""
    seed: int = 0
    """Seed for initialisation, data order, dropout and sampling."""
    init_from: str | None = None
    """Take parameters of the same name and shape from a run folder (its best checkpoint),
    a file of zoo.interop.save_safetensors, or torchvision's weights (.safetensors, .pth)."""
    eval_every: float = 1.0
    """Epochs between evaluations on the validation split; each is followed by a checkpoint."""
    keep_every: float | None = None
    """Epochs between checkpoints that are kept, rounded to a multiple of eval_every."""
    select_by: str | None = None
    """Validation metric that selects the best checkpoint; by default accuracy, else label_error,
    else loss."""
    select_mode: Mode | None = None
    """Which value is best; by default max for accuracy, min for losses and errors."""
    patience: int | None = None
    """Early stopping: stop after this many evaluations without improvement."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """At a non-finite loss or gradient: stop, or skip the step.  Parameters stay unchanged."""
    replicas: int = 1
    """Train this many replicas in parallel in one program, with this and the following seeds."""
    sweep: tuple[str, ...] = ()
    """Values to train in parallel, for example: optimizer.learning-rate 0.01 0.03 0.1"""
    steps_per_dispatch: int = 1
    """Steps per compiled loop.  Faster for small dense models; slower for convolutions on CPUs."""
    targets: Suppress[tuple[Target, ...]] = ()
    after: Suppress["Recipe[Any, Any] | None"] = None
    """The previous stage (pre-training), whose parameters `transfer` maps to this stage's."""
    transfer: Suppress[str] = "matching"
    """Name in train.transfer.TRANSFERS: how the previous stage initialises this one."""

    relabel: Suppress[bool] = False
    """Whether the targets of this stage are those that the previous stage's model assigns."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        if isinstance(self.init_from, os.PathLike):
            object.__setattr__(self, "init_from", os.fspath(self.init_from))
        if isinstance(self.data, str):
            object.__setattr__(self, "data", data.parse(self.data))
        if not isinstance(self.data, data.Source):
            raise ValueError(
                f"recipe {self.name}: data={shown(self.data)}, allowed: a Config of train.data"
            )
        if isinstance(self.sweep, list | tuple):
            object.__setattr__(self, "sweep", tuple(str(plain(value)) for value in self.sweep))
        settle(self, f"recipe {self.name}: ")
        positive = (
            "batch_size",
            "epochs",
            "steps",
            "eval_every",
            "keep_every",
            "labels",
            "patience",
            "steps_per_dispatch",
            "replicas",
        )
        for field in positive:
            value = getattr(self, field)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(
                    f"recipe {self.name}: {field}={value!r}, allowed: a positive number"
                )
        if not 0 <= self.seed < 2**31 - self.replicas + 1:
            raise ValueError(
                f"recipe {self.name}: seed={self.seed!r}, "
                "allowed: 0 <= seed < 2**31, for all replicas"
            )
        if self.after and (self.replicas > 1 or self.sweep):
            raise ValueError(
                f"recipe {self.name}: replicas={self.replicas}, sweep={self.sweep}, "
                "allowed after another stage: 1, ()"
            )
        if self.relabel and not (self.after and self.after.data == self.data):
            raise ValueError(
                f"recipe {self.name}: relabel=True, "
                "allowed without an earlier stage on the same data: False"
            )
        if self.sweep:
            _swept(self)

    @property
    def members(self) -> "dict[str, Recipe[Any, Any]]":
        """{folder name: recipe} of the runs trained in parallel; {"": self} for a single run."""
        if self.replicas == 1 and not self.sweep:
            return {"": self}
        values = _swept(self) if self.sweep else {"": self.optimizer}
        members = {}
        for name, optimizer in values.items():
            for seed in range(self.seed, self.seed + self.replicas):
                label = "-".join(
                    part for part in (name, f"seed-{seed}" if self.replicas > 1 else "") if part
                )
                members[label] = dataclasses.replace(
                    self, replicas=1, sweep=(), seed=seed, optimizer=optimizer
                )
        return members

    def evaluation_interval(self, steps_per_epoch: int) -> int:
        """Steps between evaluations."""
        return max(round(self.eval_every * steps_per_epoch), 1)

    @property
    def stages(self) -> "tuple[Recipe[Any, Any], ...]":
        """All earlier stages, in order, and this recipe."""
        return (*(self.after.stages if self.after else ()), self)


OF_DATA = ("data", "preprocess", "train_on")


def with_data_in_stages(recipe: Recipe[Any, Any], before: Recipe[Any, Any]) -> Recipe[Any, Any]:
    """Copies the data settings of ``recipe`` to its earlier stages.

    before: the recipe without overrides.  A stage follows only in those settings in which it agreed
    with ``before``.
    """

    def follow(stage: Recipe[Any, Any] | None) -> Recipe[Any, Any] | None:
        if stage is None:
            return None
        same = [name for name in OF_DATA if getattr(stage, name) == getattr(before, name)]
        return dataclasses.replace(
            stage, after=follow(stage.after), **{name: getattr(recipe, name) for name in same}
        )

    return dataclasses.replace(recipe, after=follow(recipe.after))


def written_out(recipe: Recipe[Any, Any]) -> Recipe[Any, Any]:
    """The recipe and its earlier stages with explicit ``select_by`` and ``select_mode``.

    This is the form stored in run folders.
    """
    select_by = recipe.select_by or "accuracy"
    return dataclasses.replace(
        recipe,
        select_by=select_by,
        select_mode=recipe.select_mode or BETTER.get(select_by, "max"),
        after=written_out(recipe.after) if recipe.after else None,
    )


def _swept(recipe: Recipe[Any, Any]) -> dict[str, Optimizer]:
    """{"learning_rate-0.01": the optimizer with that value, ...} for a recipe with a sweep.

    Raises ValueError if the sweep is invalid.
    """
    path, *values = recipe.sweep
    group, _, name = path.replace("-", "_").rpartition(".")
    if group != "optimizer" or name not in numeric_fields():
        allowed = ", ".join(f"optimizer.{field}".replace("_", "-") for field in numeric_fields())
        raise ValueError(f"recipe {recipe.name}: sweep of {path!r}, allowed: {allowed}")
    if len(values) < 2 or len(set(values)) < len(values):
        raise ValueError(
            f"recipe {recipe.name}: sweep={' '.join(recipe.sweep)!r}, "
            f"allowed: two or more different values after {path}"
        )
    swept = {}
    for text in values:
        try:
            value = int(text) if type(getattr(recipe.optimizer, name)) is int else float(text)
        except ValueError:
            raise ValueError(
                f"recipe {recipe.name}: sweep of {path}: {text!r}, allowed: numbers"
            ) from None
        swept[f"{name}-{text}"] = dataclasses.replace(recipe.optimizer, **{name: value})
    return swept


def module_of(cfg: Any) -> Model:
    """The model module that a Config belongs to: the one that defines its class."""
    return sys.modules[type(cfg).__module__]  # pyright: ignore[reportReturnType]


_converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)


def to_dict(recipe: Recipe[Any, Any]) -> dict[str, Any]:
    """The recipe as plain JSON types; a model's fields include the name of its module."""
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    fields["model"] = {"module": type(recipe.model).__module__} | _converter.unstructure(
        recipe.model
    )
    fields["data"] = data.to_dict(recipe.data)
    fields["after"] = to_dict(recipe.after) if recipe.after else None
    for name in ("augment", "optimizer", "targets", "sweep"):
        fields[name] = _converter.unstructure(fields[name])
    return fields


def from_dict(fields: dict[str, Any]) -> Recipe[Any, Any]:
    """The inverse of ``to_dict``.  Imports the model's module, which may be the user's."""
    import importlib

    model = dict(fields["model"])
    config = importlib.import_module(model.pop("module")).Config
    after = from_dict(fields["after"]) if fields["after"] else None
    rest = {name: value for name, value in fields.items() if name not in ("model", "data", "after")}
    source = data.from_dict(fields["data"])
    blank = dataclasses.replace(
        BLANK, model=_converter.structure(model, config), data=source, after=after
    )
    types = {field.name: field.type for field in dataclasses.fields(Recipe)}
    values = {name: _converter.structure(value, types[name]) for name, value in rest.items()}  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(blank, **values)


BLANK: Recipe[Any, Any] = Recipe(name="", model=None)
"""Every setting at its default."""
