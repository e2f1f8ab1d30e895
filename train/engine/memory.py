"""Memory: what a process took at most, and keeping that of finished steps for the next ones.

A step's intermediate results are one block of up to some hundred megabytes.  The C library gives a block of that size back to the
system as soon as it is free, and the next step pays for every page again: up to half of a convolutional step's time on a CPU.
"""

import ctypes
import functools
import platform
import sys

import jax

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


@functools.cache
def keep_memory() -> bool:
    """Tells glibc's allocator to keep what is freed, for this process; False, and nothing done, with another C library.

    Works for threads that have not allocated yet, so call it before JAX runs anything; the command lines do.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One arena: those of other threads hold 64 MB at most and map larger blocks one by one, whatever the settings.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
    return all(mallopt(name, value) for name, value in settings.items())


def peak_memory() -> int:
    """Bytes that the busiest local device, or else this process on the host, has taken at most so far; 0 where nobody knows."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    on_device = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    if on_device:
        return on_device
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
