"""Opens files: every fault becomes a DataError, which names the file."""

import contextlib
import gzip
import os
import pathlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

MAX_BYTES, ALWAYS_BYTES, MAX_RATIO = 2**33, 2**28, 200
"""Limits of decompressed bytes: ALWAYS_BYTES, or MAX_RATIO times the file's, up to MAX_BYTES."""
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"}
"""Files that operating systems create in folders, in lower case, apart from dot files."""


class DataError(ValueError):
    """Data are missing, damaged or unsuitable.  Names the file or data set and its fault."""


@contextlib.contextmanager
def reading(source: str | pathlib.Path) -> Iterator[None]:
    """Turns all exceptions into a DataError naming the source, and hides warnings."""
    try:
        with _without_warnings():
            yield
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged input
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{source}: unreadable: {lines[0][:200] if lines else type(error).__name__}"
        ) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides warnings on the main thread.

    Warning filters are global to the process; concurrent threads would restore the wrong ones.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def opened(file: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file; exceptions while it is open become a DataError.

    Rejects pipes and devices, which may never end.
    """
    with reading(file):
        if not file.is_file():
            raise DataError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
        with open(file, "rb") as raw:
            yield raw


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """The entries of a folder, sorted by name, without hidden and JUNK files."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if not (entry.name.startswith(".") or entry.name.lower() in JUNK)
    )


def named(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file with this name in a folder, ignoring case; folder / name if there is none."""
    file = folder / name
    if file.exists() or not folder.is_dir():
        return file
    return next(
        (entry for entry in sorted(folder.iterdir()) if entry.name.lower() == name.lower()), file
    )


def not_read(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """A note on files next to the data that were not read; () for none."""
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return (f"not read: {files[0]}{more}",) if files else ()


def room_for(raw: BinaryIO) -> int:
    """The limit of decompressed bytes, against damaged lengths and decompression bombs."""
    return min(MAX_BYTES, max(ALWAYS_BYTES, MAX_RATIO * os.fstat(raw.fileno()).st_size))


def unzipped(raw: BinaryIO) -> Any:
    """The content of an open file; detects gzip by the content, not by the name."""
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if zipped else raw
