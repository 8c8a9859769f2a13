"""Every size through one to four hops, where the uplink carries 1492 bytes as with PPPoE.

Either the host's own interface says so, or the line behind a modem is narrower than the host
knows and the modem says nothing about it. Four labs of 40 ms a server are up at once; what came
of all sizes is gathered once, the tests judge it.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import GATEWAY, HOST, TARGET, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.model.chain import Slot, source_port
from chainctl.settings import Settings
from tests.leak.allow import Anything, Arp, Flow, Inside
from tests.leak.canary import Expect, Udp
from tests.leak.frames import UDP
from tests.leak.oracle import Oracle
from tests.leak.verdict import Verdict

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PATH_MTU = 1492
HOPS = (1, 2, 3, 4)
OVERHEAD = 60
HEADERS = 28
"""IPv4 and UDP, or IPv4 and ICMP."""
MTUS = {PATH_MTU - OVERHEAD * hops for hops in HOPS} | {1420, 1492, 1500}
EVERY = list(range(1, 2001))
SOME = sorted({*EVERY[::40], *(m - HEADERS + more for m in MTUS for more in range(-20, 20))})
"""Payloads for ICMP: some from everywhere, all around the MTU of anything on the way."""
SIZES = {"udp": EVERY, "udp-df": EVERY, "icmp": SOME, "icmp-df": SOME}
TCP_BYTES = 400_000

VARIANTS = {
    "its own interface": {"wan_mtu": PATH_MTU},
    "behind a modem that is silent": {"path_mtu": PATH_MTU, "icmp": False},
}


@dataclass(frozen=True)
class Found:
    """What one lab showed. `sizes`: by kind, as size_client.py prints it."""

    status: dict[str, Any]
    sizes: dict[str, dict[str, Any]]
    tcp: str
    """What came of an upload that was echoed."""
    verdict: Verdict

    @property
    def mtu(self) -> int:
        return int(self.status["mtu"])


@pytest.fixture(scope="module", params=VARIANTS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By number of hops."""
    home = tmp_path_factory.mktemp("mtu")
    with ThreadPoolExecutor(len(HOPS)) as pool:
        work = {
            hops: pool.submit(look, LabSpec(_name(), hops, 0, **_line(request.param)), home)
            for hops in HOPS
        }
        return {hops: future.result() for hops, future in work.items()}


@pytest.mark.parametrize("hops", HOPS)
class TestASmallUplink:
    def test_status_tells_the_mtu_exactly(self, found: dict[int, Found], hops: int) -> None:
        assert found[hops].mtu == PATH_MTU - OVERHEAD * hops
        by_hop = [PATH_MTU - OVERHEAD * number for number in range(1, hops + 1)]
        assert [hop["mtu"] for hop in found[hops].status["hops"]] == by_hop

    @pytest.mark.parametrize("kind", ["udp", "icmp"])
    def test_every_size_is_answered(self, found: dict[int, Found], hops: int, kind: str) -> None:
        assert outcome(found[hops], kind) == {
            "answered": spans(SIZES[kind]),
            "refused": "",
            "lost": "",
            "garbled": "",
        }

    @pytest.mark.parametrize("kind", ["udp-df", "icmp-df"])
    def test_what_may_not_be_cut_passes_or_is_refused(
        self, found: dict[int, Found], hops: int, kind: str
    ) -> None:
        fits = found[hops].mtu - HEADERS
        assert outcome(found[hops], kind) == {
            "answered": spans([size for size in SIZES[kind] if size <= fits]),
            "refused": spans([size for size in SIZES[kind] if size > fits]),
            "lost": "",
            "garbled": "",
        }
        assert found[hops].sizes[kind]["mtu"] == found[hops].mtu

    def test_tcp_arrives_whole_in_both_directions(self, found: dict[int, Found], hops: int) -> None:
        assert found[hops].tcp == "the same"

    def test_fragments_do_not_leave_in_the_clear(self, found: dict[int, Found], hops: int) -> None:
        found[hops].verdict.assert_clean()


def look(spec: LabSpec, home: Path) -> Found:
    """Bring a lab and its chain up, try everything, take all down."""
    with chain(spec) as lab, Oracle(home / lab.name, test=lab.name) as oracle:
        watch(oracle, lab)
        canary = oracle.start(Udp(str(TARGET.ip), 7, count=200, rate=40), expect=Expect.DELIVERED)
        sizes = {kind: try_sizes(lab, kind) for kind in SIZES}
        tcp = try_tcp(lab)
        canary.stop()
        status = json.loads(chainctl(lab, "status", "--json"))["chains"][0]
        return Found(status, sizes, tcp, oracle.judge())


@contextmanager
def chain(spec: LabSpec) -> Iterator[Lab]:
    try:
        lab = Lab.create(spec, wireguard_go=find_wireguard_go(Settings.load().image_dir))
        chainctl(lab, "up", str(lab.chain_file))
        yield lab
        chainctl(lab, "down")
    finally:
        remove(spec.name)


def watch(oracle: Oracle, lab: Lab) -> None:
    """The uplink carries the first tunnel alone, in whole packets; the target hears the rest."""
    namespaces = {place: Path("/run/netns", lab.namespace(place)) for place in ("host", "client")}
    oracle.client(namespaces["client"], "eth0", address="192.168.10.50", gateway=str(GATEWAY.ip))
    guard = lab.server(1).plan
    own = source_port(0, 1, Slot.A)
    oracle.watch(
        namespaces["host"],
        "eth0",
        "uplink",
        allow=[
            Flow(str(HOST.ip), own, str(guard.uplink.ip), guard.port, UDP),
            Arp(str(HOST.ip), str(HOST.network[1])),
        ],
        hides=[Inside("192.168.10.0/24"), Inside("198.19.0.0/16"), Inside(f"{TARGET.ip}/32")],
    )
    oracle.watch(
        Path("/run/netns", lab.namespace("target")),
        "eth0",
        "target",
        allow=[Anything()],
        hides=[Inside("192.168.10.0/24"), Inside("198.19.0.0/16"), Inside("10.0.0.0/8")],
        may_carry_canaries=True,
    )


def try_sizes(lab: Lab, kind: str) -> dict[str, Any]:
    program = Path(__file__).with_name("size_client.py")
    argv = ["python3", "-I", str(program), str(TARGET.ip), kind, json.dumps(SIZES[kind])]
    done = lab.run("client", argv, timeout=90)
    assert done.returncode == 0, done.stderr
    out: dict[str, Any] = json.loads(done.stdout)
    return out


TCP_ECHO = """
import random, socket, sys, threading
data = random.Random(1).randbytes(int(sys.argv[2]))
sock = socket.create_connection((sys.argv[1], 7), timeout=60)
sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
sender.start()
with sock.makefile("rb") as answers:
    answers.readline()
    back = answers.read()
sender.join()
print("the same" if back == data else f"{len(back)} bytes came back")
"""


def try_tcp(lab: Lab) -> str:
    argv = ["python3", "-I", "-c", TCP_ECHO, str(TARGET.ip), str(TCP_BYTES)]
    done = lab.run("client", argv, timeout=90)
    return done.stdout.strip() or done.stderr


def chainctl(lab: Lab, *words: str) -> str:
    done = lab.run("host", [sys.executable, "-m", "chainctl", *words], timeout=90)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def outcome(found: Found, kind: str) -> dict[str, str]:
    sizes = found.sizes[kind]
    return {what: spans(sizes[what]) for what in ("answered", "refused", "lost", "garbled")}


def spans(sizes: list[int]) -> str:
    """`1-3, 5` for [1, 2, 3, 5]."""
    out: list[tuple[int, int]] = []
    for size in sizes:
        if out and size == out[-1][1] + 1:
            out[-1] = (out[-1][0], size)
        else:
            out.append((size, size))
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in out)


def _line(variant: str) -> dict[str, Any]:
    return {"rtt_ms": 40.0, **VARIANTS[variant]}


def _name() -> str:
    return f"mtu-{secrets.token_hex(4)}"
