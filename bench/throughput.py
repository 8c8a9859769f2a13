"""How fast TCP is between two places, by iperf3."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.namespaces import run

PORT = 5201


@contextmanager
def server(command: Sequence[str]) -> Iterator[None]:
    """iperf3 serving; `command` is what starts a program in its place, before its own words."""
    with subprocess.Popen(
        [*command, "iperf3", "--server", "--port", str(PORT), "--forceflush"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "listening" in line:
                    break
            yield
        finally:
            process.kill()


def measure(command: Sequence[str], address: str, *, seconds: float) -> float:
    """Bits per second that arrived at `address`."""
    argv = [*command, "iperf3", "--client", address, "--port", str(PORT), "--json"]
    answer = json.loads(run([*argv, "--time", str(seconds), "--connect-timeout", "5000"]))
    return float(answer["end"]["sum_received"]["bits_per_second"])
