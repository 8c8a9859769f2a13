from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench import harness
from bench.harness import Ratio, Result, at_least, at_most, ratio_at_least, ratio_at_most


def with_ratio(low: float, high: float) -> Result:
    return Result(value=1, samples=[], baseline=1, ratio=Ratio((low + high) / 2, low, high))


@pytest.mark.parametrize(
    ("target", "result", "met"),
    [
        (at_most(150), Result(150, []), True),
        (at_most(150), Result(150.1, []), False),
        (at_least(20_000), Result(20_000, []), True),
        (at_least(20_000), Result(19_999, []), False),
        (ratio_at_least(1.0), with_ratio(0.971, 1.2), True),
        (ratio_at_least(1.0), with_ratio(0.969, 1.2), False),
        (ratio_at_most(1.05), with_ratio(0.9, 1.079), True),
        (ratio_at_most(1.05), with_ratio(0.9, 1.081), False),
    ],
)
def test_a_target_is_met_up_to_its_bound(target: harness.Target, result: Result, met: bool) -> None:
    assert target.met(result) is met


def test_a_ratio_cannot_be_judged_without_one() -> None:
    with pytest.raises(ValueError, match="ratio"):
        ratio_at_most(1).met(Result(1, []))


def test_pairs_take_turns_in_going_first() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    pairs = harness.interleave(lambda: measure("ours", 1), lambda: measure("base", 2), count=3)
    assert pairs == [(1, 2)] * 3
    assert order == ["ours", "base", "base", "ours", "ours", "base"]


def test_a_machine_that_slows_down_does_not_move_the_ratio() -> None:
    pairs = [(2.0 * speed, 1.0 * speed) for speed in (1, 1, 3, 9, 9, 27)]
    assert harness.compare(pairs).ratio == Ratio(2.0, 2.0, 2.0)


def test_the_interval_holds_the_true_ratio_about_95_times_in_100() -> None:
    rng = random.Random(7)
    held = 0
    for _ in range(200):
        pairs = [(rng.lognormvariate(0.1, 0.05), 1.0) for _ in range(21)]
        ratio = harness.bootstrap_ratio(pairs, rng=rng)
        held += ratio.low <= pow(2.718281828, 0.1) <= ratio.high
    assert 0.88 <= held / 200 <= 1.0


def test_results_of_rows_not_measured_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    harness.merge(path, [{"name": "a", "value": 1}, {"name": "b", "value": 1}])
    harness.merge(path, [{"name": "b", "value": 2}])
    assert json.loads(path.read_text()) == [{"name": "a", "value": 1}, {"name": "b", "value": 2}]


def test_a_report_has_the_documented_keys_and_no_host_name() -> None:
    row = harness.Row("x", "ms", ratio_at_most(2), lambda: Result(1, []))
    entry = harness.report(row, harness.compare([(3.0, 2.0), (3.0, 2.0)]))
    documented = "name unit value baseline ratio target met samples machine"
    assert " ".join(entry) == documented
    assert entry["ratio"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert entry["target"] == "≤ 2×"
    assert set(entry["machine"]) == {"cpu", "cores", "memory_gib", "kernel", "python"}


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROWS", {})
    harness.row("x", unit="ms", target=at_most(1))(lambda: Result(1, []))
    with pytest.raises(ValueError, match="twice"):
        harness.row("x", unit="ms", target=at_most(1))(lambda: Result(1, []))
