"""How the process has its memory: collected in small steps, and kept."""

from __future__ import annotations

import contextlib
import ctypes
import gc

# Parameters of glibc's `mallopt`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# As much is not given back to the kernel at once.
_KEPT_BYTES = 16 << 20
_LARGE_BYTES = 4 << 20


def tune() -> None:
    """To be called once what a node is made of stands."""
    # That stays for good, and is not looked at again: a full look at every 700 objects costs 40 % of the time in which
    # thousands of sockets connect. Of the young, few enough at a time that nobody waits for it: ten thousand take
    # 5 to 10 ms on a busy machine.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 100)
    # glibc gives large blocks back, and asks for them again with the next large frame, a page fault for each page.
    # Other libraries have no such function.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
