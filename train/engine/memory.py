"""Host memory: peak use, and reuse of freed blocks by later steps.

A step's intermediate results are one block of up to some hundred megabytes.  glibc returns blocks
of that size to the system as soon as they are freed, and the next step pays the page faults again:
up to half of a convolutional step's time on a CPU.
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
    """Makes glibc's allocator keep freed memory.  Returns False with another C library.

    Affects only threads that have not allocated yet, so call it before JAX runs anything, as the
    command lines do.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # A single arena: those of other threads hold at most 64 MB and always map larger blocks
    # individually.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
    return all(mallopt(name, value) for name, value in settings.items())


def peak_memory() -> int:
    """Peak bytes of the busiest local device, or else of this process; 0 if unknown."""
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
