"""Helpers for data sets."""

import os

from train.data import Finder, scenes
from train.dataset import Dataset


def kinds_of(dataset: Dataset, data_dir: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Names of the pixel classes of scenes, from 1 on."""
    return scenes.make(dataset.source, Finder(data_dir)).kinds


def sentences_of(dataset: Dataset) -> dict[str, tuple[tuple[str, str], ...]]:
    """{split: ((source, target), ...)}; the source of a caption is ""."""
    return {split: table.extras["sentences"] for split, table in dataset.splits.items()}
