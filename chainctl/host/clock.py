"""Time as the kernel sees it. Everything that decides takes time as an argument instead."""

from __future__ import annotations

import time


def boot_seconds() -> float:
    """Seconds since boot, suspended time included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_ns() -> int:
    """Nanoseconds since boot: the clock of `bpf_ktime_get_boot_ns`, which the gate asks."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_seconds() -> float:
    """Seconds since 1970 UTC, for people and for event time stamps only."""
    return time.time()
