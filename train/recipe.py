"""A recipe is a value: everything that decides a result, and the result it is known to reach."""

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
    "loss": "min",
    "reconstruction_error": "min",
    "squared_error": "min",
}
"""Which values of the models' metrics are better.  Others have no direction of their own, such as a free energy."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A result that a recipe reaches: the metric (its name says the unit), the published value, and our bounds.

    published_kind: "result", what the source reports of its own training, or "bound", what its tests assert to be more than the
    metric.  at_most, at_least: what a run is expected to keep; which of them there is says which way the metric is better.
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
                f"target {self.metric}: published_kind='bound', allowed only with published and at_most"
            )

    @property
    def less_is_better(self) -> bool | None:
        """None where no bound of ours says it, or there are two."""
        return (
            None if (self.at_most is None) == (self.at_least is None) else self.at_most is not None
        )

    def as_published(self, value: float) -> bool | None:
        """Whether a value is at least as good as the published one, or below the published bound.

        None where nothing is published, or nothing says which way the metric is better.
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
    """A training run as data.  Lengths in epochs may be fractions."""

    name: Suppress[str]
    """Of the recipe; also the default name of the run folder."""
    about: Suppress[str] = ""
    """One line for lists: what it is and where it comes from."""
    model: C
    """The Config of a model; its module follows from it."""
    data: D = digits.Config()  # noqa: RUF009 (frozen)  # pyright: ignore[reportAssignmentType]
    """The Config of a kind of data, see ``train.data``.  Its settings are --data.*; --data KIND
    chooses another kind, in one word such as folder:DIR (see docs/training.md)."""
    preprocess: Preprocess = "unit"
    """unit: to 0..1.  standardize: one mean and deviation for all inputs.  zscore: a mean and deviation for each input.
    imagenet: what torchvision's weights expect of colour images."""
    train_on: Literal["train", "train+validation"] = "train"
    """Once settings are selected on the validation split, the papers train on all of it."""
    labels: int | None = None
    """Learn from this many training examples only, equally many of each class, drawn by the seed."""
    augment: Augment = Augment()  # noqa: RUF009 (frozen)
    optimizer: Optimizer = Optimizer()  # noqa: RUF009 (frozen)
    batch_size: int = 128
    epochs: float = 10.0
    steps: int | None = None
    """Number of steps; takes precedence over epochs."""
    seed: int = 0
    """Decides initialisation, order of the data, dropout and sampling."""
    init_from: str | None = None
    """Start from the parameters with the same names and shapes of a run folder (its best), a file of
    zoo.interop.save_safetensors, or torchvision's weights (.safetensors, .pth)."""
    eval_every: float = 1.0
    """Epochs between evaluations on the validation split, each followed by a checkpoint."""
    keep_every: float | None = None
    """Epochs, or so, between checkpoints that are kept to the end, for a look at how learning went: some of eval_every's."""
    select_by: str | None = None
    """Validation metric that the best checkpoint is selected by; unless given, accuracy where the model has it, else loss."""
    select_mode: Mode | None = None
    """Whether its greatest or least value is best; unless given, max for accuracy, and min for losses and errors."""
    patience: int | None = None
    """Stop after this many evaluations without a better value."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """At a step whose loss or gradient is not finite, which changes no parameter: stop there, or go on without it."""
    replicas: int = 1
    """Runs of this recipe with this and the following seeds, trained side by side in one program."""
    sweep: tuple[str, ...] = ()
    """A numeric optimizer setting and its values, trained side by side: optimizer.learning-rate 0.01 0.03 0.1."""
    steps_per_dispatch: int = 1
    """Steps in one compiled loop: more is faster for small dense models; convolutions are slower in loops on a CPU."""
    targets: Suppress[tuple[Target, ...]] = ()
    after: Suppress["Recipe[Any, Any] | None"] = None
    """The stage before this one (pre-training); its parameters pass through `transfer`."""
    transfer: Suppress[str] = "matching"
    """Name in train.transfer.TRANSFERS: how the earlier stage's parameters initialise this one."""

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
                f"recipe {self.name}: seed={self.seed!r}, allowed: 0 <= seed < 2**31, also of replicas"
            )
        if self.after and (self.replicas > 1 or self.sweep):
            raise ValueError(
                f"recipe {self.name}: replicas={self.replicas}, sweep={self.sweep}, allowed after another stage: 1, ()"
            )
        if self.sweep:
            _swept(self)

    @property
    def members(self) -> "dict[str, Recipe[Any, Any]]":
        """The runs that this recipe trains side by side, by their folders' names: {"": itself} if it is the only one."""
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
        """All earlier stages, first one first, and this recipe."""
        return (*(self.after.stages if self.after else ()), self)


OF_DATA = ("data", "preprocess", "train_on")


def with_data_in_stages(recipe: Recipe[Any, Any], before: Recipe[Any, Any]) -> Recipe[Any, Any]:
    """The recipe whose earlier stages have its data, where they had those of ``before``, the recipe that it was made of."""

    def follow(stage: Recipe[Any, Any] | None) -> Recipe[Any, Any] | None:
        if stage is None:
            return None
        same = [name for name in OF_DATA if getattr(stage, name) == getattr(before, name)]
        return dataclasses.replace(
            stage, after=follow(stage.after), **{name: getattr(recipe, name) for name in same}
        )

    return dataclasses.replace(recipe, after=follow(recipe.after))


def written_out(recipe: Recipe[Any, Any]) -> Recipe[Any, Any]:
    """The recipe with the metric that selects and its direction, also of the stages before: what run folders hold."""
    select_by = recipe.select_by or "accuracy"
    return dataclasses.replace(
        recipe,
        select_by=select_by,
        select_mode=recipe.select_mode or BETTER.get(select_by, "max"),
        after=written_out(recipe.after) if recipe.after else None,
    )


def _swept(recipe: Recipe[Any, Any]) -> dict[str, Optimizer]:
    """{"learning_rate-0.01": the optimizer with that value, ...} of a recipe with a sweep.

    Raises ValueError naming what is wrong with it.
    """
    path, *values = recipe.sweep
    group, _, name = path.replace("-", "_").rpartition(".")
    if group != "optimizer" or name not in numeric_fields():
        allowed = ", ".join(f"optimizer.{field}".replace("_", "-") for field in numeric_fields())
        raise ValueError(f"recipe {recipe.name}: sweep of {path!r}, allowed: {allowed}")
    if len(values) < 2 or len(set(values)) < len(values):
        raise ValueError(
            f"recipe {recipe.name}: sweep={' '.join(recipe.sweep)!r}, allowed: two or more different values after {path}"
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
    """The recipe as plain JSON types, with the module of each model beside its fields."""
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
    """The inverse of ``to_dict``.  Imports the model's module, which may be a user's own."""
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
