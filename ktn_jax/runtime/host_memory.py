"""How glibc's malloc holds large blocks; without glibc these functions do nothing.

XLA allocates a program's intermediate maps anew in every call, in blocks of up to gigabytes. Kept
in malloc's heap, they come to lie between small ones that stay, and the heap grows to several times
what a call needs. Given back to the system, they return as pages of 4 KiB that it clears one by
one: on a CPU a quarter of the time of inference. So the large ones are given back and come as huge
pages, and the others are kept.
"""

import ctypes
import os
import platform
import sys

# M_MMAP_THRESHOLD (the largest that it takes), M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h. With
# a single arena threads wait for each other: once a long compilation has filled it, small steps
# take nearly twice the time.
_PARAMETERS = ((-3, 2**25), (-1, 2**30), (-8, 2 * (os.cpu_count() or 1)))

# The C library reads this before Python starts.
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_HUGE_PAGES_SINCE = (2, 35)  # of glibc


def restart_with_huge_pages() -> None:
    """Starts this process's program anew, where that lets it use huge pages; does not return then.

    Nothing may have been done yet that starting anew would repeat.
    """
    tunables = os.environ.get(_TUNABLES, "")
    library, version = platform.libc_ver()
    if library != "glibc" or _HUGE_PAGES in tunables:
        return
    numbers = version.split(".")[:2]
    if not all(map(str.isdigit, numbers)) or tuple(map(int, numbers)) < _HUGE_PAGES_SINCE:
        return
    os.environ[_TUNABLES] = f"{tunables}:{_HUGE_PAGES}=1".lstrip(":")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def divide_by_size() -> None:
    """Gives blocks of 32 MiB and more pages of their own, and keeps the memory of smaller ones."""
    library = _library()
    if library is not None:
        for parameter, value in _PARAMETERS:
            library.mallopt(parameter, value)


def return_freed() -> None:
    """Gives what is free now back to the system, after something large that will not come again."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None
