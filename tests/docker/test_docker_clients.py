"""Containers by their names, their published ports, and a daemon that is away for a while."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from docker.types import IPAMConfig, IPAMPool

from chainctl.lab.layout import HOST
from chainctl.model.chain import Slot, source_port
from tests.docker.behind import (
    GATEWAY,
    SLOW,
    add_client,
    daemon,
    lab_with_docker,
    reaches,
    remove_all,
    run,
    watch,
)
from tests.docker.daemon import TestDaemon
from tests.leak.allow import Anything, Arp, Flow, Inside
from tests.leak.canary import Expect, Udp
from tests.leak.chain_rig import (
    CLIENT,
    ECHO,
    GATEWAY_ADDRESS,
    TARGET_ADDRESS,
    ChainRig,
)
from tests.leak.fixture import oracle
from tests.leak.frames import UDP
from tests.leak.namespace import inside as in_namespace
from tests.leak.oracle import Oracle
from tests.waiting import wait_until

__all__ = ["daemon", "oracle"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SHORT = 1.0
"""Seconds for an answer that is not to come."""
PORT, INNER = 8080, 80
NAMES, INNER_NAMES = 5353, 5300
LINES = (
    f"publish: [{PORT}:web:{INNER}, {NAMES}:web:{INNER_NAMES}/udp]",
    "clients:",
    f"  - {{name: laptop, address: {CLIENT}}}",
    "  - {name: crawler, label: shop.example/role=crawler}",
)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ChainRig, TestDaemon]]:
    with lab_with_docker(*LINES) as both:
        yield both


@pytest.fixture
def chain(running: tuple[ChainRig, TestDaemon]) -> Iterator[ChainRig]:
    rig, daemon = running
    rig.up()
    yield rig
    remove_all(daemon)
    if rig.status().get("why_closed"):
        rig.chainctl("open", ok=False)


@contextmanager
def serving(box: Path, page: bytes, port: int = INNER) -> Iterator[list[str]]:
    """A web server of sorts in a container; yields the addresses of who asked."""
    seen: list[str] = []
    with box.open("rb") as place:
        server = in_namespace(place.fileno(), lambda: socket.create_server(("", port)))

    def serve() -> None:
        while True:
            try:
                visitor, address = server.accept()
            except OSError:
                return
            with visitor:
                seen.append(address[0])
                visitor.sendall(page)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def ask(place: Path, address: str, port: int, *, patience: float = SLOW) -> bytes:
    """What is said by who listens there; empty when nobody is heard."""

    def connect() -> bytes:
        try:
            with socket.create_connection((address, port), patience) as stream:
                return stream.recv(100)
        except OSError:
            return b""

    with place.open("rb") as namespace:
        return in_namespace(namespace.fileno(), connect)


def asks_gateway(chain: ChainRig, port: int = PORT, *, patience: float = 5.0) -> bytes:
    return ask(chain.path("client"), GATEWAY_ADDRESS, port, patience=patience)


def bound(port: int) -> socket.socket:
    """For datagrams."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", port))
    sock.settimeout(SLOW)
    return sock


def clients(chain: ChainRig) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in chain.status()["clients"]}


def all_here(chain: ChainRig, *names: str) -> bool:
    known = clients(chain)
    return all(name in known and known[name]["here"] for name in names)


def happened(chain: ChainRig) -> list[str]:
    return [text for text in chain.chainctl("logs").stdout.splitlines() if "client" in text]


def test_devices_reach_what_is_published_whether_open_or_shut(
    chain: ChainRig, daemon: TestDaemon, oracle: Oracle
) -> None:
    box = run(daemon, chain, "web")
    watch(chain, oracle, box)
    with serving(box, b"a page") as visitors, serving(box, b"another", INNER + 1):
        wait_until(lambda: asks_gateway(chain) == b"a page", seconds=SLOW)
        assert set(visitors) == {CLIENT}
        for port in (INNER, INNER + 1):
            assert asks_gateway(chain, port, patience=SHORT) == b""
        chain.chainctl("close")
        assert asks_gateway(chain) == b"a page"
        # What answers is not a way out: neither what a container sends from the published port
        # itself, nor anything else.
        for port in (INNER_NAMES, 0):
            order = Udp(TARGET_ADDRESS, ECHO, count=200, rate=400, source_port=port)
            oracle.send(order, name=f"from port {port}", client="box")
        oracle.battery([(TARGET_ADDRESS, ECHO)], client="box")
        assert asks_gateway(chain) == b"a page"
        chain.chainctl("open")
        assert asks_gateway(chain) == b"a page"
        oracle.send(
            Udp(TARGET_ADDRESS, ECHO, count=200, source_port=INNER_NAMES),
            expect=Expect.DELIVERED,
            name="open",
            client="box",
        )
    oracle.judge().assert_clean()


def test_a_container_opens_nothing_towards_devices(chain: ChainRig, daemon: TestDaemon) -> None:
    box = run(daemon, chain, "web")
    device = chain.path("client")
    with serving(box, b"a page"), serving(device, b"private", 7777):
        wait_until(lambda: asks_gateway(chain) == b"a page", seconds=SLOW)
        assert ask(device, CLIENT, 7777) == b"private"
        assert ask(box, CLIENT, 7777, patience=SHORT) == b""
        assert ask(box, GATEWAY_ADDRESS, PORT, patience=SHORT) == b""
    # Not even what needs no answer, also not from the port that is published.
    with device.open("rb") as place, box.open("rb") as inner:
        listener = in_namespace(place.fileno(), lambda: bound(7777))
        sender = in_namespace(inner.fileno(), lambda: bound(INNER_NAMES))
        neighbour = in_namespace(place.fileno(), lambda: bound(0))
    with listener, sender, neighbour:
        for _ in range(3):
            sender.sendto(b"from the container", (CLIENT, 7777))
        neighbour.sendto(b"a neighbour", (CLIENT, 7777))
        assert listener.recv(100) == b"a neighbour"
        # A device asks by UDP, and hears the answer.
        neighbour.sendto(b"a question", (GATEWAY_ADDRESS, NAMES))
        question, who = sender.recvfrom(100)
        assert (question, who[0]) == (b"a question", CLIENT)
        sender.sendto(b"an answer", who)
        assert neighbour.recvfrom(100) == (b"an answer", (GATEWAY_ADDRESS, NAMES))


def test_a_port_follows_its_container_without_a_word_to_others(
    chain: ChainRig, daemon: TestDaemon
) -> None:
    run(daemon, chain, "first")
    box = run(daemon, chain, "web")
    with serving(box, b"before"):
        wait_until(lambda: asks_gateway(chain) == b"before", seconds=SLOW)
    before = clients(chain)["web"]["address"]
    proved, repaired = chain.event("hop_proved"), chain.event("repaired")
    with daemon.api() as api:
        api.remove_container("web", force=True)
    wait_until(lambda: chain.status()["published"][0]["to"] is None, seconds=SLOW)
    assert any(f"[N505] port {PORT} leads nowhere" in note for note in chain.status()["notes"])
    run(daemon, chain, "third")
    box = run(daemon, chain, "web")
    with serving(box, b"after"):
        wait_until(lambda: asks_gateway(chain) == b"after", seconds=SLOW)
    assert clients(chain)["web"]["address"] != before
    assert chain.event("hop_proved") == proved
    assert chain.event("repaired") == repaired


def test_ports_that_somebody_takes_away_are_mended_beside_the_traffic(
    chain: ChainRig, daemon: TestDaemon
) -> None:
    box = run(daemon, chain, "web")
    with serving(box, b"a page"):
        wait_until(lambda: asks_gateway(chain) == b"a page", seconds=SLOW)
        proved = chain.event("hop_proved")
        chain.run("gateway", "nft", "delete", "table", "inet", "chainctl-published")
        wait_until(lambda: asks_gateway(chain) == b"a page", seconds=SLOW)
        assert chain.event("hop_proved") == proved
    texts = [repair["text"] for repair in chain.status()["repairs"]]
    assert any(text.startswith("published ports of") for text in texts)


def test_a_connection_ends_with_what_was_published(chain: ChainRig, daemon: TestDaemon) -> None:
    """Also one that both ends would keep."""
    box = run(daemon, chain, "web")
    wait_until(lambda: chain.status()["published"][0]["to"], seconds=SLOW)
    with box.open("rb") as place, chain.path("client").open("rb") as device:
        server = in_namespace(place.fileno(), lambda: socket.create_server(("", INNER)))
        to = (GATEWAY_ADDRESS, PORT)
        client = in_namespace(device.fileno(), lambda: socket.create_connection(to, SLOW))
    with server, client, server.accept()[0] as visitor:
        visitor.sendall(b"1")
        assert client.recv(1) == b"1"
        with daemon.api() as api:
            api.rename("web", "other")
        wait_until(lambda: chain.status()["published"][0]["to"] is None, seconds=SLOW)
        visitor.sendall(b"2")
        client.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            client.recv(1)
        with daemon.api() as api:
            api.rename("other", "web")
        client.settimeout(SLOW)
        assert client.recv(1) == b"2"


def test_containers_have_names(chain: ChainRig, daemon: TestDaemon) -> None:
    run(daemon, chain, "stack-web-1", labels={"com.docker.compose.service": "web"})
    run(daemon, chain, "a1", labels={"chainctl.client": "indexer"})
    run(daemon, chain, "b1", labels={"shop.example/role": "crawler"})
    assert chain.run("client", "busybox", "ping", "-c1", "-W3", GATEWAY_ADDRESS)
    wait_until(lambda: all_here(chain, "stack-web-1", "indexer", "crawler", "laptop"), seconds=SLOW)
    known = clients(chain)
    assert known["crawler"]["container"] == "b1"
    assert known["laptop"] | {"mac": ""} == {
        "name": "laptop",
        "kind": "device",
        "address": CLIENT,
        "mac": "",
        "container": None,
        "here": True,
    }
    assert chain.status()["published"][0]["to"] == known["stack-web-1"]["address"]
    with daemon.api() as api:
        api.rename("stack-web-1", "stack-web-2")
        api.stop("b1", timeout=0)
    wait_until(lambda: "stack-web-2" in clients(chain), seconds=SLOW)
    wait_until(lambda: not clients(chain)["crawler"]["here"], seconds=SLOW)
    address = known["crawler"]["address"]
    told = wait_until(lambda: [line for line in happened(chain) if "crawler" in line][-1:])
    assert f"crawler (container b1) left; it had {address}" in told[0]
    assert any("stack-web-1 is called stack-web-2 now" in line for line in happened(chain))
    explained = chain.chainctl("explain").stdout
    assert f"indexer: container a1 at {known['indexer']['address']}" in explained
    assert "crawler: container, not here now" in explained


def test_a_chain_comes_up_without_docker_and_containers_join_later(
    chain: ChainRig, daemon: TestDaemon
) -> None:
    chain.down()
    daemon.stop()
    try:
        done = chain.chainctl("up", str(chain.lab.chain_file))
        assert "[N504] Docker does not answer" in done.stdout
        assert chain.is_open
        assert chain.run("client", "busybox", "ping", "-c1", "-W3", TARGET_ADDRESS)
    finally:
        daemon.start()
    proved = chain.event("hop_proved")

    def network_is_there() -> bool:
        with daemon.api() as api:
            return bool(api.networks(names=[f"chain-{chain.lab.name}"]))

    wait_until(network_is_there, seconds=SLOW)
    run(daemon, chain, "late")
    wait_until(lambda: reaches(daemon, "late"), seconds=SLOW)
    assert chain.event("hop_proved") == proved
    assert not any("N504" in note for note in chain.status()["notes"])


def test_a_network_that_docker_refuses_holds_nobody_up(chain: ChainRig, daemon: TestDaemon) -> None:
    chain.down()
    pool = IPAMPool(subnet=str(IPv4Interface(f"{GATEWAY}/24").network))
    with daemon.api() as api:
        api.create_network("rival", ipam=IPAMConfig(pool_configs=[pool]))
    daemon.stop()
    try:
        chain.up()
    finally:
        daemon.start()
    try:
        wait_until(lambda: any("[C547]" in note for note in chain.status()["notes"]), seconds=SLOW)
        chain.wait_open()
        assert chain.run("client", "busybox", "ping", "-c1", "-W3", TARGET_ADDRESS)
    finally:
        with daemon.api() as api:
            api.remove_network("rival")
    chain.up()
    assert not any("[C547]" in note for note in chain.status()["notes"])
    run(daemon, chain, "again")
    wait_until(lambda: reaches(daemon, "again"), seconds=SLOW)


def test_a_network_that_somebody_removes_is_made_again(chain: ChainRig, daemon: TestDaemon) -> None:
    name = f"chain-{chain.lab.name}"
    proved = chain.event("hop_proved")
    with daemon.api() as api:
        api.remove_network(name)
        wait_until(lambda: api.networks(names=[name]), seconds=SLOW)
    run(daemon, chain, "again")
    wait_until(lambda: reaches(daemon, "again"), seconds=SLOW)
    assert chain.event("hop_proved") == proved


def test_a_daemon_that_hangs_holds_nobody_up(chain: ChainRig, daemon: TestDaemon) -> None:
    """Beside what it does not answer, everything goes on: also published ports."""
    box = run(daemon, chain, "web")
    with serving(box, b"a page"):
        wait_until(lambda: asks_gateway(chain) == b"a page", seconds=SLOW)
        mended = chain.mended("nft")
        daemon.signal(signal.SIGSTOP)
        try:
            chain.run("hop2", "nft", "flush", "ruleset")
            wait_until(mended, seconds=SLOW)
            assert asks_gateway(chain) == b"a page"
        finally:
            daemon.signal(signal.SIGCONT)


def test_beside_an_uplink_of_its_own(chain: ChainRig, daemon: TestDaemon, oracle: Oracle) -> None:
    before = chain.lab.chain_file.read_text()
    own = str(HOST.network[20])
    kept = [line for line in before.splitlines() if not line.startswith("wan:")]
    wan = f"wan: {{interface: eth0, mode: macvlan, address: {own}/24}}"
    chain.lab.chain_file.write_text("\n".join([*kept, wan, ""]))
    try:
        chain.up()
        box = run(daemon, chain, "web")
        wait_until(lambda: reaches(daemon, "web"), seconds=SLOW)
        watch_own_uplink(chain, oracle, own)
        add_client(oracle, box)
        with serving(box, b"a page"):
            wait_until(lambda: asks_gateway(chain) == b"a page", seconds=SLOW)
            order = Udp(TARGET_ADDRESS, ECHO, count=200)
            oracle.send(order, expect=Expect.DELIVERED, name="open", client="box")
            chain.chainctl("close")
            assert asks_gateway(chain) == b"a page"
            oracle.battery([(TARGET_ADDRESS, ECHO)], client="box")
            chain.chainctl("open")
        oracle.judge().assert_clean()
    finally:
        chain.lab.chain_file.write_text(before)
        chain.up()
        # Servers have heard from the other address by now; their router forgets this one.
        chain.run("client", "busybox", "ping", "-c1", "-W3", TARGET_ADDRESS)
        chain.run("internet", "ip", "neigh", "flush", "to", own)


def watch_own_uplink(chain: ChainRig, oracle: Oracle, own: str) -> None:
    """What leaves by the cable has the chain's own address there, and is hop 1's tuple."""
    server, port = chain.endpoints[0]
    router = str(HOST.network[1])
    oracle.watch(
        *(chain.path("internet"), "host", "outside"),
        allow=[
            Flow(own, source_port(0, 1, Slot.A), server, port, UDP),
            *(Arp(address, router) for address in (own, str(HOST.ip), "0.0.0.0")),
        ],
        hides=[Inside("192.168.10.0/24"), Inside("172.31.0.0/16"), Inside("198.19.0.0/16")],
    )
    oracle.watch(
        *(chain.path("internet"), "target", "X"), allow=[Anything()], may_carry_canaries=True
    )
