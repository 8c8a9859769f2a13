"""What it costs to start the command line, in CPU time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.harness import Result, at_most, compare, interleave, row

_CHAINCTL = Path(sys.executable).with_name("chainctl")


@row("cli_help", unit="ms", target=at_most(150))
def cli_help() -> Result:
    """`chainctl --help` beside a Python that does nothing."""
    ours = [str(_CHAINCTL), "--help"]
    cpu_ms(ours)  # compiles what is not compiled yet
    return compare(
        interleave(lambda: cpu_ms(ours), lambda: cpu_ms([sys.executable, "-c", ""]), count=20)
    )


def cpu_ms(argv: list[str]) -> float:
    """User and system time of one run of `argv`, as an installed program has it: bytecode kept."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{argv} exited with status {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000
