"""How glibc's malloc holds large blocks; without glibc these functions do nothing.

XLA allocates a program's intermediate maps in every call, in blocks of up to gigabytes. If malloc
keeps them in its heap, small long-lived blocks fragment it, and the heap grows to several times
what a call needs. If it returns them to the system, every call gets them back as pages of 4 KiB
that the kernel clears one by one: on a CPU a quarter of the time of inference. So large blocks are
returned and come back as huge pages, and the others are kept.
"""

import ctypes
import os
import platform
import sys

# M_MMAP_THRESHOLD (its largest value), M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h. With
# a single arena threads wait for each other: once a long compilation has filled it, small steps
# take nearly twice the time.
_PARAMETERS = ((-3, 2**25), (-1, 2**30), (-8, 2 * (os.cpu_count() or 1)))

# The C library reads this before Python starts.
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_HUGE_PAGES_SINCE = (2, 35)  # of glibc


def restart_with_huge_pages() -> None:
    """Restarts this process with huge pages where glibc supports them; does not return then.

    Call it first: whatever the process did before is done again.
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
    """Makes malloc map blocks of 32 MiB and more separately, and keep smaller ones."""
    library = _library()
    if library is not None:
        for parameter, value in _PARAMETERS:
            library.mallopt(parameter, value)


def return_freed() -> None:
    """Returns free memory to the system; for after a large allocation that will not be repeated."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None
