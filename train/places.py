"""Locations of data files: the user's directories, and a cache for downloads."""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from train.formats import DataError, reading

NO_CACHE = "no writable home folder; set XDG_CACHE_HOME to another folder"


def roots(data_dir: str | os.PathLike[str] | None) -> Iterator[pathlib.Path]:
    """The directories to search for data.  Raises DataError for one that does not exist."""
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
    """Finds a path in the current directory or a data directory.  It may be absolute."""
    searched = []
    with reading(path):
        for root in itertools.chain([pathlib.Path.cwd()], roots(data_dir)):
            place = root / pathlib.Path(path).expanduser()
            if place.exists():
                return place
            searched.append(str(place))
    raise DataError(f"no such file or folder: {', '.join(dict.fromkeys(searched))}")


def download(
    name: str, file: str, md5: str, mirrors: tuple[str, ...], all_files: tuple[str, ...] = ()
) -> pathlib.Path:
    """The file from the cache, or from the first mirror that has it with this checksum.

    all_files: the files to install by hand if no mirror works; the DataError then explains how.
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
        except Exception as error:  # no network, mirror gone, wrong checksum: try the next one
            failures.append(f"{mirror}: {type(error).__name__}: {str(error)[:80]}")
    raise DataError(
        f"data {name!r}: {file} is neither here nor could it be downloaded "
        f"({'; '.join(failures)}).  Put {', '.join(all_files or (file,))} into DIR/{name}/ "
        "and give --data-dir DIR or set ZOO_DATA_DIR=DIR"
    )


def cache(name: str) -> pathlib.Path | None:
    """A folder in the user's cache, which may not exist yet; None if it cannot be created.

    The cache is in XDG_CACHE_HOME or the system's default, which needs a home folder.
    """
    import pooch

    try:
        folder = pathlib.Path(pooch.os_cache("purezoo")) / name
    except RuntimeError:  # newer platformdirs raise without a home; older ones return ~/...
        return None
    return folder if folder.parts[0] != "~" and (folder.is_dir() or may_write(folder)) else None


def may_write(path: pathlib.Path) -> bool:
    """Whether the user may create files in a folder, and the folder itself if it is missing."""
    existing = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


class ProgressBar:
    """Progress of downloads and other long work, by rich; silent without a terminal or any work.

    Has the interface that pooch expects: total, update, reset and close.
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
        """Bytes expected; set when the first bytes arrive."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, value: float) -> None:
        self._progress.start()
        self._progress.update(self._task, total=value or None)

    def update(self, amount: float) -> None:
        """Adds bytes that arrived."""
        self._progress.advance(self._task, amount)

    def reset(self) -> None:
        """Restarts the bar."""
        self._progress.reset(self._task, start=True)

    def close(self) -> None:
        """Removes the bar."""
        self._progress.stop()
