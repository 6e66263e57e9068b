"""Makes the C library keep freed memory, so that each step's large tensors do not fault in fresh pages."""

from __future__ import annotations

import ctypes
import sys

# mallopt parameters of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from its heap and to keep them when they are freed; says whether it did.

    By default glibc maps every large block anew and returns it at once, so each activation of each step costs page
    faults and zeroing. The process then holds its peak until it ends, which a training step would reach again anyway.
    Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 64 << 20))
