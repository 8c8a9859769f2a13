"""Freed memory goes back to the kernel."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, sys
from pathlib import Path
from chainctl.host.memory import give_back, share_one_arena

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = resident()
places = [libc.malloc(60_000) for _ in range(1000)]
for place in places:
    ctypes.memset(place, 1, 60_000)
# All but what lies above the others, as a thread's last few words do.
for place in places[:-1]:
    libc.free(ctypes.c_void_p(place))
kept = resident()
give_back()
print(before, kept, resident())
"""


def test_what_is_free_between_what_is_not_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    before, kept, after = map(int, done.stdout.split())
    assert kept - before > 10_000
    assert after - before < (kept - before) / 4
