"""How a claim is measured and judged; the rows themselves are in `bench.rows`.

A comparison is made of pairs: what we built and its baseline, measured in turns in one run, so
that a change of the machine's speed hits both. The ratio is the median over the pairs, its
interval a percentile bootstrap over them (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import os
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Pair: TypeAlias = tuple[float, float]
"""(ours, baseline), measured one right after the other."""

PAIRS = 11
_RESAMPLES = 2000
_SLACK = 0.03
"""How far a ratio's interval may end on the wrong side of its target."""


@dataclass(frozen=True)
class Ratio:
    """Ours by baseline, with a 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """What a row measured. `samples` are the numbers themselves, in the order they came;
    `classes` says which of them belong together, by what was different between them.
    """

    value: float
    samples: Sequence[float] | Sequence[Pair]
    baseline: float | None = None
    ratio: Ratio | None = None
    classes: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What a row must reach: `value`, or where `of_ratio` is set, ours by baseline."""

    bound: float
    at_most: bool
    of_ratio: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.bound:g}{'×' if self.of_ratio else ''}"

    def met(self, result: Result) -> bool:
        """A ratio is judged by the less favourable end of its interval, with a little slack."""
        if not self.of_ratio:
            reached, slack = result.value, 0.0
        elif result.ratio is None:
            raise ValueError("a target for a ratio needs a result with a ratio")
        else:
            reached, slack = (result.ratio.high if self.at_most else result.ratio.low), _SLACK
        return reached <= self.bound + slack if self.at_most else reached >= self.bound - slack


def at_most(bound: float) -> Target:
    return Target(bound, at_most=True)


def at_least(bound: float) -> Target:
    return Target(bound, at_most=False)


def ratio_at_most(bound: float) -> Target:
    return Target(bound, at_most=True, of_ratio=True)


def ratio_at_least(bound: float) -> Target:
    return Target(bound, at_most=False, of_ratio=True)


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    target: Target
    measure: Callable[[], Result]


EDGES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Upper ends of the classes of a histogram, in the row's unit; what is more is in one more."""


def describe(samples: Sequence[float]) -> dict[str, Any]:
    """A distribution as `bench/results.json` holds it."""
    counts = [0] * (len(EDGES) + 1)
    for sample in samples:
        counts[bisect.bisect_left(EDGES, sample)] += 1
    return {
        "count": len(samples),
        "median": round(statistics.median(samples), 3),
        "p90": round(sorted(samples)[math.ceil(0.9 * len(samples)) - 1], 3),
        "max": round(max(samples), 3),
        "histogram": counts,
    }


ROWS: dict[str, Row] = {}
"""Every row whose module was imported, in the order of registration."""


def row(
    name: str, *, unit: str, target: Target
) -> Callable[[Callable[[], Result]], Callable[[], Result]]:
    """Register the function that measures the row `name`; it is called once per run."""

    def register(measure: Callable[[], Result]) -> Callable[[], Result]:
        if name in ROWS:
            raise ValueError(f"the row {name} is registered twice")
        ROWS[name] = Row(name, unit, target, measure)
        return measure

    return register


def interleave(
    ours: Callable[[], float], baseline: Callable[[], float], *, count: int = PAIRS
) -> list[Pair]:
    """`count` pairs; who goes first changes from pair to pair."""
    pairs = []
    for turn in range(count):
        if turn % 2:
            second = baseline()
            pairs.append((ours(), second))
        else:
            first = ours()
            pairs.append((first, baseline()))
    return pairs


def compare(pairs: Sequence[Pair]) -> Result:
    """Medians of both sides, and the median ratio of the pairs with its interval."""
    return Result(
        value=statistics.median(ours for ours, _ in pairs),
        baseline=statistics.median(baseline for _, baseline in pairs),
        ratio=bootstrap_ratio(pairs),
        samples=list(pairs),
    )


def bootstrap_ratio(pairs: Sequence[Pair], *, rng: random.Random | None = None) -> Ratio:
    """The median of ours/baseline over `pairs`, with the 95 % interval of that median."""
    rng = rng or random.Random(0)
    ratios = [ours / baseline for ours, baseline in pairs]
    medians = sorted(
        statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES)
    )
    return Ratio(
        median=statistics.median(ratios),
        low=medians[round(0.025 * _RESAMPLES)],
        high=medians[round(0.975 * _RESAMPLES) - 1],
    )


def report(row: Row, result: Result) -> dict[str, Any]:
    """The row as `bench/results.json` holds it."""
    distribution = {name: describe(samples) for name, samples in result.classes.items()}
    return {
        "name": row.name,
        "unit": row.unit,
        "value": result.value,
        "baseline": result.baseline,
        "ratio": asdict(result.ratio) if result.ratio else None,
        "target": str(row.target),
        "met": row.target.met(result),
        "samples": list(result.samples),
        "machine": machine(),
        **({"distribution": distribution} if distribution else {}),
    }


def merge(path: Path, reports: Sequence[dict[str, Any]]) -> None:
    """Write `reports` to `path`; rows that were not measured this time keep their last result."""
    known = (
        {entry["name"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}
    )
    known.update({entry["name"]: entry for entry in reports})
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in known.values())
    path.write_text(f"[\n{lines}\n]\n")


@functools.cache
def machine() -> dict[str, Any]:
    """What the numbers depend on, and nothing that names the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line for line in cpuinfo.splitlines() if line.startswith("model name")), ":?")
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
