"""A kind of data: flips of coins, and how often each coin shows heads."""

import dataclasses
from typing import ClassVar

import numpy as np

from tests.plugin.task import Bias
from train.data.base import Finder, Form, Source, number
from train.dataset import Dataset, Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """Flips of coins."""

    kind: ClassVar[str] = "coins"
    identity: ClassVar[tuple[str, ...]] = ("count",)
    counts: ClassVar[tuple[str, ...]] = ("count", "flips")
    count: int = 200
    """Coins to train on."""
    flips: int = 8
    """Flips of each coin."""

    def __str__(self) -> str:
        return f"coins:{self.count}"


def _parse(rest: str) -> Config:
    return Config(count=number(rest.removeprefix(":"), 1, 10_000, "coins"))


FORMS = {"coins": Form("coins:COUNT", "flips of coins", _parse)}


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs float32 [n, flips], 1 for heads; targets float32 [n, 1]: the coin's bias."""
    counts = (
        {"train": cfg.count, "validation": 50, "test": 50} if find.divide else {"test": cfg.count}
    )
    splits = {}
    for index, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([7, index])
        bias = rng.random((count, 1), np.float32)
        flips = (rng.random((count, cfg.flips)) < bias).astype(np.float32)
        names = tuple(f"coin {row}" for row in range(count))
        splits[split] = Table({"inputs": flips, "targets": bias}, extras={"names": names})
    return Dataset(str(cfg), splits, Bias("heads"))
