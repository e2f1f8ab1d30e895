"""Where files of data lie: the directories that a user names, a cache, and what is downloaded into it."""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from train.formats import DataError, reading

NO_CACHE = "there is no home folder that can be written to; XDG_CACHE_HOME may name another folder"


def roots(data_dir: str | os.PathLike[str] | None) -> Iterator[pathlib.Path]:
    """The directories where data may lie."""
    for origin, root in (
        ("--data-dir", data_dir),
        ("ZOO_DATA_DIR", os.environ.get("ZOO_DATA_DIR")),
    ):
        if root:
            with reading(f"{origin} {root}"):
                path = pathlib.Path(root).expanduser()
                if not path.is_dir():
                    raise DataError(f"{origin} {root}: no such directory")
            yield path


def locate(path: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """The path within the current or else a data directory; an absolute path is itself within any."""
    looked = []
    with reading(path):
        for root in itertools.chain([pathlib.Path.cwd()], roots(data_dir)):
            place = root / pathlib.Path(path).expanduser()
            if place.exists():
                return place
            looked.append(str(place))
    raise DataError(f"no such file or folder: {', '.join(dict.fromkeys(looked))}")


def download(
    name: str, file: str, md5: str, mirrors: tuple[str, ...], all_files: tuple[str, ...] = ()
) -> pathlib.Path:
    """The file, from the cache or else from the first mirror that has it with this checksum.

    all_files: those that a person could put in place by hand.  Raises DataError that says how, where no mirror has it.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder, failures = cache(name), []
    if folder is None:
        mirrors, failures = (), [NO_CACHE]
    for mirror in mirrors:
        try:
            with contextlib.closing(ProgressBar(file)) as bar:
                downloader: Any = pooch.HTTPDownloader(timeout=20)
                downloader.progressbar = bar
                return pathlib.Path(
                    pooch.retrieve(mirror + file, f"md5:{md5}", file, folder, downloader=downloader)
                )
        except (
            Exception
        ) as error:  # no network, a mirror that is gone, a checksum that differs: try the next one
            failures.append(f"{mirror}: {type(error).__name__}: {str(error)[:80]}")
    raise DataError(
        f"data {name!r}: {file} is neither here nor could it be downloaded ({'; '.join(failures)}).  Put "
        f"{', '.join(all_files or (file,))} into DIR/{name}/ and give --data-dir DIR or set ZOO_DATA_DIR=DIR"
    )


def cache(name: str) -> pathlib.Path | None:
    """A folder in the user's cache, whether it is there or not; None where nothing can be kept.

    XDG_CACHE_HOME says where that is, or what the system has instead, which a user without a home does not have.
    """
    import pooch

    try:
        folder = pathlib.Path(pooch.os_cache("purezoo")) / name
    except RuntimeError:  # of newer platformdirs; of older ones the path begins with ~
        return None
    return folder if folder.parts[0] != "~" and (folder.is_dir() or may_write(folder)) else None


def may_write(path: pathlib.Path) -> bool:
    """Whether this user may make files in a folder, or the folder itself."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


class ProgressBar:
    """What is drawn during downloads and other long work, with rich; nothing where there is no terminal, or nothing to do.

    It has what pooch wants: total, update, reset and close.
    """

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        columns = (TextColumn(label), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task(label, total=None)

    @property
    def total(self) -> float | None:
        """Bytes expected; set when the first of them come."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, value: float) -> None:
        self._progress.start()
        self._progress.update(self._task, total=value or None)

    def update(self, amount: float) -> None:
        """More bytes have come."""
        self._progress.advance(self._task, amount)

    def reset(self) -> None:
        """Begins again."""
        self._progress.reset(self._task, start=True)

    def close(self) -> None:
        """Takes the bar away."""
        self._progress.stop()
