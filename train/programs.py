"""Compiled programs, kept in the user's cache folder so that the next start does not compile them again."""

import contextlib
import pathlib
import warnings
import zlib
from typing import Any

import jax

from train.places import cache, may_write

LARGEST = 2 * 10**9
"""Bytes that the programs may take; the least recently used ones are removed at the next start."""
SUFFIX = "-cache"
"""How JAX ends the name of a program's file."""
CHECKED = "checked"
"""A file whose time says when the programs were last checked."""
UNFINISHED = "Error reading persistent compilation cache entry .*incomplete or truncated stream"
"""JAX's warning of a program that another process is just writing; it is compiled once more."""


def keep_programs() -> None:
    """Keeps compiled programs, small ones too, in the user's cache folder if there is one, unless JAX is told another folder.

    JAX can limit the size of the folder by itself, but then it locks and scans the whole folder whenever it writes a program:
    0.16 s for a folder of 1,000 programs, longer than compiling a small one.  And if it is killed between the two files that it
    writes for each program, every later write fails.  So the folder is cleaned here, once at each start.
    """
    config: Any = jax.config  # its attributes are made at run time
    if config.jax_compilation_cache_dir is not None:
        return
    folder = cache("programs")
    if folder is None or not may_write(folder):
        return  # so every start compiles
    try:
        clean(folder)
    except OSError:  # as of a full disk
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", -1)
    warnings.filterwarnings("ignore", UNFINISHED)


def clean(folder: pathlib.Path, largest: int = LARGEST) -> None:
    """Makes the folder; removes programs that are not complete, and the least recently used ones beyond ``largest`` bytes.

    A process that is killed may leave a part of a program, which JAX would not replace, but warn of at every start.  Each file
    is read once, at the first start after it was written.  Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / CHECKED
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    stamp.touch()  # first: what another process writes meanwhile is checked at the next start
    programs = []
    for file in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process may be cleaning, too
            status = file.stat()
            if status.st_mtime >= since and not _complete(file.read_bytes()):
                file.unlink()
            else:
                programs.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    total = sum(size for _, size, _ in programs)
    for _, size, file in sorted(programs):
        if total <= largest:
            break
        file.unlink(missing_ok=True)
        total -= size


def _complete(data: bytes) -> bool:
    """Whether a file holds a whole program.  A zlib stream ends with a checksum; other formats are taken as they are."""
    if data[:1] not in (b"", b"\x78"):
        return True
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True
