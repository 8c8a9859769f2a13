"""`chainctl drill` as a person uses it, and whether its taps see what they are there for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from chainctl.lab.faults import Kind
from chainctl.lab.layout import TARGET
from chainctl.lab.traffic import Flood, new_marker, wiretaps
from tests.system.chain_lab import ChainLab, chain_lab
from tests.system.test_json import Seen, check

pytestmark = pytest.mark.root

SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for _ in range(3):
        sock.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 7))
"""


@pytest.fixture(scope="module")
def chain() -> Iterator[ChainLab]:
    with chain_lab("fdrill", spares=6) as chain:
        yield chain


def drill(lab: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "chainctl", "drill", "--lab", lab, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_a_frozen_server(chain: ChainLab) -> None:
    before = chain.servers["exit"]
    # It ends as soon as there is a successor, which takes a busy machine some time.
    words = ("freeze-server", "--hop", "exit", "--seconds", "30", "--json")
    done = drill(chain.lab.name, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["server"] == before != facts["successor"] == chain.servers["exit"]
    assert facts["recovered_seconds"] is not None
    assert facts["packets_lost"] > 0
    assert facts["connections_broken"] == facts["connections"]  # Another exit is another address.
    assert "server_replaced" in {event["kind"] for event in facts["events"]}
    seen = Seen()
    seen.add({**facts, "leaks": [{"flow": "", "frames": 0}]})
    check("`drill`", seen)


def test_in_words(chain: ChainLab) -> None:
    done = drill(chain.lab.name, "kill-client")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaked     0 frames (control seen)" in done.stdout
    assert "mended after" in done.stdout


def test_only_large_packets_suffer_from_a_narrow_line(chain: ChainLab) -> None:
    result = chain.drill.run(Kind.MTU, "guard", seconds=2.0, rate=100.0)
    assert result.whole
    assert result.report.busy[0].stalled > 1.0
    assert result.outage < 1.0


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--lab", "no-such-lab"), "C602"), (("--hop", "no-such-hop"), "C622")],
)
def test_what_is_not_there(chain: ChainLab, words: tuple[str, ...], code: str) -> None:
    done = drill(chain.lab.name, "loss", *words)
    assert done.returncode == 2
    assert code in done.stderr


def test_a_lab_without_a_chain() -> None:
    with chain_lab("fnone", up=False) as chain:
        done = drill(chain.lab.name, "loss")
    assert done.returncode == 1
    assert "C621" in done.stderr
    assert f"chainctl up {chain.lab.chain_file}" in done.stderr


def test_the_taps_see_a_leak(chain: ChainLab) -> None:
    """The host itself sends the marker, as a leak would: in the clear, to a stranger."""
    marker = new_marker()
    with wiretaps(chain.lab, marker, hops=3) as seen:
        argv = [sys.executable, "-I", "-c", SEND, marker.hex(), str(TARGET.ip)]
        chain.lab.run("host", argv, timeout=10)
    assert sum(seen[0].leaked.values()) >= 3
    assert any(str(TARGET.ip) in flow for flow in seen[0].foreign)
    assert not seen[0].clean


def test_the_taps_know_what_is_no_leak(chain: ChainLab) -> None:
    marker = new_marker()
    with wiretaps(chain.lab, marker, hops=3) as seen, Flood(chain.lab, marker, rate=100) as flood:
        flood.run(1.0)
    assert flood.report.lost == 0
    assert seen[0].clean, seen[0]
