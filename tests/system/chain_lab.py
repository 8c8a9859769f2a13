"""A chain of three hops in a lab of its own whose pools are large enough to lose servers.

What may pass where is told for all servers of each pool, since any of them may serve: `watch`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chainctl.api import client
from chainctl.lab.clearing import remove
from chainctl.lab.drill import Drill, Facts, find_hop
from chainctl.lab.lab import Lab, Server
from chainctl.lab.layout import GATEWAY, HOST, TARGET, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.model.chain import Slot, source_port
from chainctl.settings import Settings
from tests.leak.allow import (
    Allowed,
    Anything,
    Arp,
    Farewell,
    Flow,
    IcmpErrorAbout,
    Inside,
    Layer,
)
from tests.leak.frames import ICMP, TCP, UDP
from tests.leak.oracle import ANY, Oracle

HOPS = ("guard", "middle", "exit")
CLIENT = "192.168.10.50"
ECHO = (str(TARGET.ip), 7)

MANY_CHANGES = "\nrotation: {per_hour: 3600, per_chain_hour: 3600, guards: 100}\n"
"""Drills change servers more often in a minute than a chain may in an hour."""

_INSIDE = tuple(map(Inside, ("192.168.10.0/24", "198.19.0.0/16", "10.0.0.0/8")))
_LEG = "198.19.0.3"
"""Hop 1's address towards the host."""


class ChainLab:
    """A lab, the chain in it, and the drill for both."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.drill = Drill(lab, self.ask)
        self._among: Set[str] = frozenset()

    def ask(self, request: Facts) -> Any:
        """Put a request to the supervisor by its socket."""
        settings = Settings.load(self.lab.environ)
        return client.ask(settings, request, progress=_silent)

    def up(self) -> None:
        self._chainctl("up", str(self.lab.chain_file))

    def down(self) -> None:
        self._chainctl("down")

    def _chainctl(self, *words: str) -> None:
        done = self.lab.run("host", [sys.executable, "-m", "chainctl", *words], timeout=90)
        assert done.returncode == 0, (done.stdout, done.stderr)

    def rotate(self, hop: str) -> None:
        """Replace its server by whichever comes next; one that is too slow to answer on a busy
        machine is passed over.
        """
        candidates = self.hop(hop)["candidates"]
        assert candidates, f"{hop} has nobody to go to"
        for others in reversed(range(candidates)):
            try:
                self.ask({"do": "rotate", "chain": self.lab.name, "hop": hop, "to": ""})
            except client.Reported as refused:
                if refused.code != "C423" or not others:
                    raise
            else:
                return

    def hop(self, name: str) -> Facts:
        return find_hop(self.drill.status(), name)

    def server(self, hop: str) -> Server:
        """The one that serves it now."""
        return self.drill.server_at(self.hop(hop)["endpoint"])

    @property
    def servers(self) -> dict[str, str]:
        """By hop, the name of the one that serves it now."""
        return {place["hop"]: place["server"] for place in self.drill.status()["hops"]}

    def pool(self, number: int) -> list[Server]:
        return [server for server in self.lab.servers if server.plan.hop == number]

    def replaced_since(self, event: int) -> list[str]:
        """Hops that got another server, in that order."""
        return [
            each["hop"] for each in self.drill.events(event) if each["kind"] == "server_replaced"
        ]

    def happened(self, event: int, hop: str, kinds: Set[str]) -> bool:
        """One of these kinds of events at a hop, since then."""
        found = {each["kind"] for each in self.drill.events(event) if each["hop"] == hop}
        return not found.isdisjoint(kinds)

    def newest_event(self) -> int:
        return max(int(event["seq"]) for event in self.drill.events(0))

    def source(self) -> str:
        """Whom the target sees when the client asks anew; "" when nothing comes back."""
        answer = self.lab.ask(resolver=str(GATEWAY.ip))["web"]
        return str(answer.get("source", ""))

    def nft(self, place: str, commands: str) -> None:
        done = self.lab.run(place, ["nft", "-f", "-"], timeout=10, stdin=commands)
        assert done.returncode == 0, done.stderr

    def path(self, place: str) -> Path:
        return Path("/run/netns", self.lab.namespace(place))

    def watch(self, oracle: Oracle, *, among: Set[str] = frozenset()) -> None:
        """Watch the client's link, the host's, and all of the internet.

        `among`: names of the servers that may serve; by default any of each pool.
        """
        self._among = among
        host, internet = self.path("host"), self.path("internet")
        oracle.client(self.path("client"), "eth0", address=CLIENT, gateway=str(GATEWAY.ip))
        numbers = range(1, self.lab.layout.spec.hops + 1)
        layers = [layer for number in numbers[1:] for layer in self._layers(number)]
        uplink = self._into(1, str(HOST.ip))
        farewell = Farewell(
            frozenset(str(s.plan.uplink.ip) for s in self.lab.servers if s.plan.via == "tcp")
        )
        router = str(HOST.network[1])
        # The second one asks whether the router is there, before a guard is blamed.
        line: list[Allowed] = [Arp(str(HOST.ip), router), Arp("0.0.0.0", router), *uplink, farewell]
        line += map(IcmpErrorAbout, uplink)
        oracle.watch(internet, "host", "W1", allow=line, hides=[*_INSIDE, *layers])
        oracle.watch(host, "eth0", "host eth0", allow=line, hides=[*_INSIDE, *layers])
        leg = self._into(1, _LEG)
        # The LAN's side of the gateway: what a client sends is seen there before any judgement.
        oracle.client(host, "eth1", address=CLIENT, gateway=str(GATEWAY.ip), name="LAN")
        oracle.watch(host, ANY, "host's other links", allow=[*leg, *map(IcmpErrorAbout, leg)])
        for server in self.lab.servers:
            self._watch_server(oracle, server, farewell)
        oracle.watch(
            *(internet, "target", "X"),
            allow=[Anything()],
            hides=[*_INSIDE, *(layer for number in numbers for layer in self._layers(number))],
            may_carry_canaries=True,
        )

    def _watch_server(self, oracle: Oracle, server: Server, farewell: Farewell) -> None:
        number, address = server.plan.hop, str(server.plan.uplink.ip)
        last = self.lab.layout.spec.hops
        is_exit = number == last
        flows: list[Flow] = []
        if self._may_serve(server):
            before = [str(each.plan.uplink.ip) for each in self._serving(number - 1)]
            sources = before or [str(HOST.ip)]
            protocol = _protocol(server)
            flows = [Flow(each, None, address, server.plan.port, protocol) for each in sources]
        if not flows:
            is_exit = False
        elif is_exit:
            flows += [Flow(address, None, f"{TARGET.ip}/32", None, p) for p in (ICMP, TCP, UDP)]
        else:
            flows += self._into(number + 1, address)
        oracle.watch(
            *(self.path("internet"), server.name, server.name),
            allow=[
                Arp(address, str(server.plan.gateway.ip)),
                *flows,
                *map(IcmpErrorAbout, flows),
                farewell,
            ],
            hides=[
                *_INSIDE,
                *(layer for k in range(number + 2, last + 1) for layer in self._layers(k)),
            ],
            may_carry_canaries=is_exit,
        )

    def _may_serve(self, server: Server) -> bool:
        return not self._among or server.plan.label in self._among

    def _serving(self, number: int) -> list[Server]:
        return [server for server in self.pool(number) if self._may_serve(server)]

    def _into(self, number: int, source: str) -> list[Flow]:
        """The tunnels of a hop, as they come from `source`.

        A server that passes a tunnel on keeps its port, but not when its own client has another
        address: then the tuple of before holds the port for a while.
        """
        moves = number > 1 and any(each.plan.via != "wg" for each in self.pool(number - 1))
        return [
            Flow(source, port, str(server.plan.uplink.ip), server.plan.port, _protocol(server))
            for server in self._serving(number)
            for port in ([None] if moves else _source_ports(number))
        ]

    def _layers(self, number: int) -> list[Layer]:
        return [
            Layer(f"hop{number}", str(server.plan.uplink.ip), port, server.plan.port)
            for server in self.pool(number)
            for port in _source_ports(number)
        ]


def _protocol(server: Server) -> int:
    return TCP if server.plan.via == "tcp" else UDP


def _source_ports(number: int) -> list[int]:
    return [source_port(0, number, slot) for slot in Slot]


@contextmanager
def chain_lab(
    letter: str, *, more: str = MANY_CHANGES, standby: str = "", up: bool = True, **spec: Any
) -> Iterator[ChainLab]:
    """A lab with its chain up. `more` is added to the chain file; the hop `standby` keeps one."""
    name = f"{letter}-{secrets.token_hex(3)}"
    engine = find_wireguard_go(Settings.load().image_dir)
    try:
        lab = Lab.create(LabSpec(name, **spec), wireguard_go=engine)
        text = lab.chain_file.read_text()
        if standby:
            text = text.replace(f"name: {standby},", f"name: {standby}, standby: true,")
        lab.chain_file.write_text(text + more)
        chain = ChainLab(lab)
        if up:
            chain.up()
        yield chain
    finally:
        remove(name)


def _silent(step: Facts) -> None:
    """Steps are of no interest here."""
