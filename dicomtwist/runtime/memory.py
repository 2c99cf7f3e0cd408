"""
What a process that serves for a long time asks of the interpreter and the C library that it runs on.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

__all__ = ["retain_heap", "freeze_startup_objects"]

#: How much free memory is kept at the end of the heap, in bytes.
KEPT_MEMORY: Final = 16 * 1024 * 1024
#: What is allocated is taken from the heap up to this size, in bytes; what is larger is of its own, and given back.
LARGEST_ON_HEAP: Final = 4 * 1024 * 1024
#: By how much more than is needed the heap grows, in bytes.
HEAP_STEP: Final = 1024 * 1024

# glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3


def retain_heap() -> bool:
    """
    Have the C library keep the memory of what came to put there what comes next.

    Each read of a large data set takes up to 256 KiB. glibc gives memory back to the system as soon as 128 KiB are free at the
    end of the heap, and has to get it anew, page by page: ten thousand page faults for an object of 200 MB.

    :returns: whether it could be asked for: only of glibc.
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
    Take what the start made, modules and dictionaries, out of what Python's collector looks through: that takes 50 ms each
    time, in which nobody is answered.
    """
    gc.collect()
    gc.freeze()
