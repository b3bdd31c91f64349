"""What the C library's allocator keeps of memory that is free again: little, so that a budget holds over hours.

By default glibc takes large blocks from its heaps once such a block was freed, has heaps of its own for every thread, and gives back only
what lies at the end of one: a process that loads and frees weights in pieces of some MiB grows by a few of them with every plan.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
_LARGE_BYTES = 4 * 1024**2
_MOST_FREE_BYTES = 16 * 1024**2
"""At the end of a heap. With less, arrays of every step would be mapped and cleared anew: sampling took half as long again."""
_MOST_ARENAS = 2


def keep_little() -> None:
    """Map every large block by itself, so that it is given back when it is freed, and keep few heaps. For the beginning of a program."""
    library = _library()
    if library is not None:
        for parameter, value in ((_MMAP_THRESHOLD, _LARGE_BYTES), (_TRIM_THRESHOLD, _MOST_FREE_BYTES), (_ARENA_MAX, _MOST_ARENAS)):
            library.mallopt(parameter, value)


def give_back() -> None:
    """What is free in the heaps goes back to the system: some milliseconds, so not in an event loop that others wait for."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    """None where the C library is another one, which does without."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
