"""Runs that tests of several modules only read: each is trained once per test run."""

import dataclasses
import fcntl
import os
import pathlib
import tempfile
from collections.abc import Callable

import pytest

import train
from train.engine.parallel import Parallel
from train.recipes import RECIPES

CLASSIFIER = dataclasses.replace(
    RECIPES["mlp-digits"], epochs=3, about="short <script>alert(1)</script>"
)


def classifier(folder: pathlib.Path) -> None:
    """A complete run of three epochs, with a name that a report must escape."""
    train.run(CLASSIFIER, folder, quiet=True, parallel=Parallel(devices=1))


def built_once(
    factory: pytest.TempPathFactory, name: str, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """A folder made by ``build``, the same one in all processes of pytest-xdist.

    The first process builds it, the others wait.  If that process fails or dies, its lock is
    released, and the next one builds.  A folder gets its name only when it is complete.
    """
    place = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the parent is the folder of all workers
        place = place.parent
    place = place / "shared"
    place.mkdir(exist_ok=True)
    with open(place / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / name).exists():
            draft = pathlib.Path(tempfile.mkdtemp(dir=place)) / name
            build(draft)
            draft.rename(place / name)
    return place / name


def content(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """{file: time of its last change}."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
