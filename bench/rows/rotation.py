"""200 rotations, one after the other: what they leave behind, and in memory."""

from __future__ import annotations

import functools

from bench.harness import Result, at_most, row
from tests.system.rotations import Course, rotate_many

_COUNT = 200


@row("rotation_leftovers", unit="things", target=at_most(0))
def rotation_leftovers() -> Result:
    """Namespaces, mounts, links, rules, routes, rows of the filter, groups, processes, files and
    open descriptors that are there afterwards and were not before, or the other way round.
    """
    left = _course().left
    if left:
        print(f"left behind: {left}")
    return Result(sum(map(abs, left.values())), samples=list(left.values()))


@row("rotation_memory", unit="KiB", target=at_most(10))
def rotation_memory() -> Result:
    """By which the supervisor grows with each rotation, after the first 50."""
    course = _course()
    return Result(course.growth() / 1024, samples=[size / 1024 for size in course.memory])


@functools.cache
def _course() -> Course:
    return rotate_many("fmany", _COUNT)
