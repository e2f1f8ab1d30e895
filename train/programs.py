"""The persistent cache of compiled programs, in the user's cache folder."""

import contextlib
import pathlib
import warnings
import zlib
from typing import Any

import jax

from train.places import cache, may_write

LARGEST = 2 * 10**9
"""Maximum size of the cache in bytes; each start removes the least recently used programs."""
SUFFIX = "-cache"
"""Suffix of JAX's program files."""
CHECKED = "checked"
"""A file whose modification time is that of the last check of the programs."""
UNFINISHED = "Error reading persistent compilation cache entry .*incomplete or truncated stream"
"""JAX's warning about a program that another process is still writing; it is compiled again."""


def keep_programs() -> None:
    """Caches all compiled programs in the user's cache folder, unless JAX has another cache folder.

    JAX's own size limit is not used: it locks and scans the whole folder at every write, 0.16 s for
    1,000 programs, which is longer than compiling a small one; and a kill between the two files
    that it writes per program makes all later writes fail.  ``clean`` limits the size instead.
    """
    config: Any = jax.config  # defines its attributes at run time
    if config.jax_compilation_cache_dir is not None:
        return
    folder = cache("programs")
    if folder is None or not may_write(folder):
        return  # every start then compiles
    try:
        clean(folder)
    except OSError:  # e.g. disk full
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", -1)
    warnings.filterwarnings("ignore", UNFINISHED)


def clean(folder: pathlib.Path, largest: int = LARGEST) -> None:
    """Creates the folder; removes incomplete programs, and old ones beyond ``largest`` bytes.

    A killed process may leave an incomplete program, which JAX does not replace but warns about at
    every start.  Each file is read once, at the first start after it was written.  The least
    recently used programs are removed first.  Raises OSError if the folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / CHECKED
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    stamp.touch()  # first, so that concurrent writes are checked at the next start
    programs = []
    for file in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process may be cleaning too
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
    """Whether a file holds a complete program: checked for zlib streams, assumed for others."""
    if data[:1] not in (b"", b"\x78"):
        return True
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True
