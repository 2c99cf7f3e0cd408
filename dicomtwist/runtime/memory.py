"""
Memory settings of the interpreter and the C library for a process that runs for a long time.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

__all__ = ["retain_heap", "freeze_startup_objects"]

#: The free memory that is kept at the end of the heap, in bytes.
KEPT_MEMORY: Final = 16 * 1024 * 1024
#: The largest block that is allocated on the heap, in bytes; a larger block gets its own mapping and is returned when freed.
LARGEST_ON_HEAP: Final = 4 * 1024 * 1024
#: The extra memory by which the heap grows each time, in bytes.
HEAP_STEP: Final = 1024 * 1024

# glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3


def retain_heap() -> bool:
    """
    Make the C library keep freed memory for later allocations.

    Each read of a large data set allocates up to 256 KiB. By default glibc returns memory to the system as soon as 128 KiB are
    free at the end of the heap, and then gets it again page by page: ten thousand page faults for an object of 200 MB.

    :returns: whether the C library supports it; only glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trimmed = mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)
    on_heap = mallopt(_M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
    return bool(mallopt(_M_TOP_PAD, HEAP_STEP) and trimmed and on_heap)


def freeze_startup_objects() -> None:
    """
    Exclude the objects of the start, such as modules and dictionaries, from Python's garbage collection. A full collection
    of them takes 50 ms, during which no peer gets an answer.
    """
    gc.collect()
    gc.freeze()
