"""Times as a person writes them: a whole number and its unit, `250ms`, `30d`."""

from __future__ import annotations

import re

DURATION = "[0-9]{1,6}(ms|s|m|h|d)"
"""A regular expression that Python and ECMAScript read alike."""
SPAN = f"{DURATION}(-{DURATION})?"

_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
"""Milliseconds, the largest first."""


def parse_duration(word: str) -> float:
    """Seconds; ValueError for anything that is not of the form DURATION."""
    match = re.fullmatch("([0-9]{1,6})(ms|s|m|h|d)", word)
    if match is None:
        raise ValueError("expected a number and its unit (ms, s, m, h, d), such as `90s`")
    return int(match[1]) * _UNITS[match[2]] / 1000


def parse_span(word: str) -> tuple[float, float]:
    """Least and most seconds of `6h-24h`; twice the same for a single time."""
    low, _, high = word.partition("-")
    span = parse_duration(low), parse_duration(high or low)
    if span[0] > span[1]:
        raise ValueError(f"the longer time comes first in `{word}`; write `{high}-{low}`")
    return span


def render_duration(seconds: float) -> str:
    """The shortest word that `parse_duration` reads as so many seconds, to the millisecond."""
    left = round(seconds * 1000)
    for unit, worth in _UNITS.items():
        if left and left % worth == 0:
            return f"{left // worth}{unit}"
    return "0s"
