"""Crash points: the process ends exactly where it was told to, and says where it passed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chainctl.supervisor.crash import CrashPoints

_THREE_STEPS = """
from chainctl.supervisor.crash import CrashPoints

crash = CrashPoints()
for step in "abc":
    crash.pass_by("before", step)
    print(step, flush=True)
    crash.pass_by("after", step)
"""


def _run(**environ: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _THREE_STEPS],
        env={**environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert not done.stderr
    return done.returncode, "".join(done.stdout.split())


@pytest.mark.parametrize(
    ("at", "status", "steps"),
    [
        ("0:before", -signal.SIGKILL, ""),
        ("0:after", -signal.SIGKILL, "a"),
        ("1:before", -signal.SIGKILL, "a"),
        ("2:after", -signal.SIGKILL, "abc"),
        ("3:before", 0, "abc"),
        ("", 0, "abc"),
    ],
)
def test_ends_there(at: str, status: int, steps: str) -> None:
    assert _run(CHAINCTL_CRASH_AT=at) == (status, steps)


def test_says_which_points_it_passed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    crash = CrashPoints({"CHAINCTL_CRASH_LOG": str(log)})
    for step in ("first", "second"):
        crash.pass_by("before", step)
        crash.pass_by("after", step)
    assert log.read_text().splitlines() == [
        "0:before first",
        "0:after first",
        "1:before second",
        "1:after second",
    ]
