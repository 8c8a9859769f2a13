"""A lab in which supervisors are killed, with the oracle around it.

What the crash tests share: `up` has to open, `down` has to leave the host as before, and
nothing of a client may be seen outside meanwhile.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import GATEWAY, HOST, TARGET, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.model.chain import Slot, source_port
from chainctl.model.event import Recorded
from chainctl.model.parts import NsName
from chainctl.net.links import lasting_mac
from chainctl.settings import Settings
from chainctl.store.journal import Journal
from tests.leak.allow import Allowed, Anything, Arp, Flow, Hidden, IcmpErrorAbout, Inside, Layer
from tests.leak.canary import Frames, Udp
from tests.leak.frames import UDP
from tests.leak.namespace import inside, read_links
from tests.leak.oracle import ANY, Oracle
from tests.system.forks import Facts, Forks, Ran
from tests.system.host_state import HostState, assert_same, snapshot

DOWN: Facts = {"do": "down", "chains": []}
CLIENT = "192.168.10.50"
GATEWAY_ADDRESS = str(GATEWAY.ip)
FLOOD = Udp(str(TARGET.ip), 7, count=50_000, rate=100)
"""What a client sends all along, at most for the ten minutes a sender lives."""


@dataclass(frozen=True)
class Bench:
    """A lab whose machine has had a chain before, and is without one."""

    lab: Lab
    forks: Forks
    before: HostState

    @property
    def up(self) -> Facts:
        return {"do": "up", "file": str(self.lab.chain_file)}

    def journal(self, after: int = 0) -> list[Recorded]:
        """What was written down, of the events numbered above `after`."""
        with contextlib.closing(Journal(self.lab.home / "state/journal.sqlite")) as journal:
            return journal.events(after=after)

    def opens(self, when: str) -> Ran:
        """`up`, and it has to be open."""
        ran = self.forks.run(self.up)
        assert not ran.killed, when
        assert not ran.died, f"{when}: {ran.died}"
        assert ran.error is None, f"{when}: {ran.error}"
        (facts,) = ran.answers[0]
        assert facts["posture"] == "open", f"{when}: {facts['why_closed']}"
        return ran

    def goes_down(self, when: str) -> None:
        """`down`, and the host has to be as it was before the first chain."""
        ran = self.forks.run(DOWN)
        assert not ran.died, f"{when}: {ran.died}"
        assert ran.error is None, f"{when}: {ran.error}"
        assert_same(self.before, snapshot(self.lab), when)


@contextmanager
def bench_of(hops: int, *, spares: int = 0, more: str = "") -> Iterator[Bench]:
    """A new lab; of it and all that was killed in it nothing is left afterwards.

    `more` is added to the chain file.
    """
    name = f"crash-{secrets.token_hex(3)}"
    engine = find_wireguard_go(Settings.load().image_dir)
    try:
        spec = LabSpec(name, hops=hops, spares=spares, offload=False)
        lab = Lab.create(spec, wireguard_go=engine)
        lab.chain_file.write_text(lab.chain_file.read_text() + more)
        with Forks(lab) as forks:
            empty = Bench(lab, forks, snapshot(lab))
            # The host learns its router's address from the first chain's packets, and keeps it.
            empty.opens("the first time")
            forks.run(DOWN).checked()
            yield Bench(lab, forks, snapshot(lab))
    finally:
        remove(name)


def stays_shut(lab: Lab, oracle: Oracle, when: str) -> None:
    """What a client sends now comes out nowhere. Where no LAN leg is, nobody could take it."""
    if lan_leg(lab):
        oracle.send(Frames(("udp", "tcp-syn", "icmp"), str(TARGET.ip), 7), name=when)


def lan_leg(lab: Lab) -> bool:
    pin = lab.home / "run/netns" / f"{lab.name}.gateway"
    try:
        with pin.open("rb") as entrance:
            links = inside(entrance.fileno(), read_links)
    except OSError:
        return False  # Not there, or a file on which nothing is mounted yet.
    return any(link.name == "lan0" for link in links.values())


def watch(lab: Lab, oracle: Oracle) -> None:
    """The client, whatever leaves the host, and the target."""
    host, internet = (Path("/run/netns", lab.namespace(place)) for place in ("host", "internet"))
    client = Path("/run/netns", lab.namespace("client"))
    mac = lasting_mac(NsName(f"{lab.name}.gateway"), "lan0")
    neighbour = ["ip", "neigh", "replace", GATEWAY_ADDRESS, "lladdr", mac, "nud", "permanent"]
    # It sends whether there is a gateway or not.
    assert lab.run("client", [*neighbour, "dev", "eth0"], timeout=10).returncode == 0
    ends = [(str(server.plan.uplink.ip), server.plan.port) for server in lab.servers]
    ports = [source_port(0, number, Slot.A) for number in range(1, len(ends) + 1)]
    flow, leg = (Flow(source, ports[0], *ends[0], UDP) for source in (str(HOST.ip), "198.19.0.3"))
    inside_out: list[Hidden] = [
        Inside(prefix) for prefix in ("192.168.10.0/24", "198.19.0.0/16", "10.0.0.0/8")
    ]
    layers = [
        Layer(f"hop{number}", address, port, own)
        for number, ((address, own), port) in enumerate(zip(ends, ports, strict=True), 1)
    ]
    oracle.client(client, "eth0", address=CLIENT, gateway=GATEWAY_ADDRESS)
    oracle.client(host, "eth1", address=CLIENT, gateway=GATEWAY_ADDRESS, name="LAN")
    line: list[Allowed] = [flow, Arp(str(HOST.ip), "192.0.2.1"), IcmpErrorAbout(flow)]
    hidden = [*inside_out, *layers[1:]]
    oracle.watch(internet, "host", "W1", allow=line, hides=hidden)
    oracle.watch(host, "eth0", "host eth0", allow=line, hides=hidden)
    oracle.watch(host, ANY, "host's other links", allow=[leg])
    oracle.watch(
        *(internet, "target", "X"),
        allow=[Anything()],
        hides=[*inside_out, *layers],
        may_carry_canaries=True,
    )
