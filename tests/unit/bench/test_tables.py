"""The tables in the documents are made from what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import harness, tables
from bench.harness import Result, at_most

PLACES = """\
before
<!-- measured: failover -->
old
<!-- end -->
between
<!-- measured: rotation -->
<!-- end -->
after
"""


def entry(name: str, samples: list[float], **classes: list[float]) -> tables.Entry:
    row = harness.Row(name, "s", at_most(1), lambda: Result(0, []))
    return harness.report(row, Result(max(samples), samples, classes=classes))


def test_only_what_was_measured_is_written(tmp_path: Path) -> None:
    document = tmp_path / "health.md"
    document.write_text(PLACES)
    tables.write(document, {})
    assert document.read_text() == PLACES
    active = entry("failover_active", [0.4, 0.6, 0.7], all=[0.4, 0.6, 0.7], guard=[0.7])
    tables.write(document, {"failover_active": active, "tcp_survival": entry("tcp_survival", [2])})
    lines = document.read_text().splitlines()
    assert lines[0] == "before"
    assert "old" not in lines
    assert lines[4].startswith("| `failover_active` 1000 packets/s from each")
    assert lines[4].endswith("| all | 3 | 0.60 s | 0.70 s | 0.70 s | 0 0 0 1 2 0 0 0 0 0 0 |")
    assert lines[5] == "|  | guard | 1 | 0.70 s | 0.70 s | 0.70 s | 0 0 0 0 1 0 0 0 0 0 0 |"
    assert "| `tcp_survival` | 2 s | ≤ 1 | no |" in lines
    tables.write(document, {"failover_active": active})
    assert document.read_text().splitlines() == lines


def test_a_document_without_a_place_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "health.md"
    document.write_text("nothing\n")
    with pytest.raises(ValueError, match="0 places"):
        tables.write(document, {"tcp_survival": entry("tcp_survival", [2])})


def test_the_documents_have_the_places() -> None:
    text = (Path(__file__).parents[3] / "docs/health.md").read_text()
    for name in ("failover", "rotation"):
        assert tables.replace(text, name, "new\n").count(f"{name} -->\nnew\n<!-- end -->") == 1


def test_a_distribution_counts_every_sample() -> None:
    found = harness.describe([0.05, 0.1, 0.11, 1.0, 5.0, 7.0, 0.2, 0.2, 0.2, 0.2])
    assert found["histogram"] == [2, 5, 0, 0, 0, 1, 0, 0, 0, 1, 1]
    assert (found["count"], found["median"], found["p90"], found["max"]) == (10, 0.2, 5.0, 7.0)
