"""How fast TCP is between two places, by iperf3."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.namespaces import run

_PORT = "5201"


def measure(client: Sequence[str], server: Sequence[str], address: str, *, seconds: float) -> float:
    """Bits per second that arrived at `address`, where `server` is; both are the beginnings of
    command lines that start a program in its place.
    """
    argv = [*client, "iperf3", "--client", address, "--port", _PORT, "--json"]
    with _serving(server):
        answer = json.loads(run([*argv, "--time", str(seconds), "--connect-timeout", "5000"]))
    return float(answer["end"]["sum_received"]["bits_per_second"])


@contextmanager
def _serving(command: Sequence[str]) -> Iterator[None]:
    """One test long: between two, iperf3 shuts its socket and resets whoever came early."""
    argv = [*command, "iperf3", "--server", "--one-off", "--port", _PORT, "--forceflush"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "listening" in line:
                    break
            yield
        finally:
            process.kill()
