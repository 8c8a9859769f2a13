"""A chain of three hops in a lab of its own, with the oracle at every place that matters.

Commanded as a user does, broken as nobody should. What may pass where follows the headings of
docs/security.md: `watch` takes the state and knows the allow-lists.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from chainctl.api import client
from chainctl.errors import ChainctlError
from chainctl.host import clock
from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import GATEWAY, HOST, TARGET, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.model.chain import Slot, source_port
from chainctl.model.parts import NsName
from chainctl.net.filter import IDENTITY_OBJECT, PanelFilter
from chainctl.net.links import lasting_mac
from chainctl.settings import Settings
from tests.kernel.open_wire import attach_open_wire
from tests.leak.allow import (
    Allowed,
    Anything,
    Arp,
    Farewell,
    Flow,
    Hidden,
    IcmpErrorAbout,
    Inside,
    Late,
    Layer,
)
from tests.leak.canary import ODD, PLAIN, Dns, Expect, Frames, Udp
from tests.leak.frames import ICMP, TCP, UDP
from tests.leak.namespace import inside
from tests.leak.oracle import ANY, Oracle
from tests.waiting import wait_until

T = TypeVar("T")

HOPS = 3
CLIENT = "192.168.10.50"
TARGET_ADDRESS = str(TARGET.ip)
GATEWAY_ADDRESS = str(GATEWAY.ip)
ECHO = 7
"""Where the target listens, by UDP and TCP."""
PATIENCE = 30.0
"""Seconds for anything to happen on a busy machine; most takes one or two."""
QUIET = 1.5
"""Seconds; a change is looked at within one."""
MENDED = 10.0
"""Seconds until a fault is mended; it takes one or two."""
GATE_TIMEOUT = 4.0
"""What docs/security.md promises: so long after the last proof the gate is shut."""

OTHER_PROTOCOLS = ("ip-in-ip", "gre", "sctp")
"""Of the odd kinds of frames those that are plain IPv4, and therefore carried when open."""

_CARRIED = (ICMP, 4, TCP, UDP, 47, 132)
"""IP protocols that may come out of the exit; 4 is IP in IP, 47 GRE, 132 SCTP."""
_LEGS = Inside("198.19.0.0/16")
_LAN = Inside("192.168.10.0/24")
_TUNNELS = Inside("10.0.0.0/8")


@dataclass(frozen=True)
class Passing:
    """What may be where; by default what an open chain whose clients talk to the target has."""

    tunnels: bool = True
    """The servers' tuples, else nothing at all."""
    layers: bool = False
    """Every layer has to be seen where it belongs."""
    naked: bool = False
    """What leaves may have hop 1's own address, as when the host's table is gone."""
    at_servers: bool = False
    """Canaries are aimed at servers, where they may arrive from the exit."""
    at_leg: bool = False
    """The filter was made to lead clients to the host, whose table stops them there."""


class Fault(NamedTuple):
    """Something done to a chain, and words of what `status` says about it when it is mended."""

    name: str
    act: Callable[[ChainRig], object]
    words: tuple[str, ...]


def endure(
    chain: ChainRig, oracle: Oracle, faults: Sequence[Fault], passing: Passing | None = None
) -> None:
    """Do each to an open chain under floods: nothing leaks, each is mended and said in status."""
    chain.watch(oracle, passing or Passing(at_servers=True))
    running = [
        oracle.start(Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000), expect=Expect.DELIVERED),
        oracle.start(as_tunnel(chain), expect=Expect.EITHER),
    ]
    for fault in faults:
        mended = chain.mended(*fault.words)
        fault.act(chain)
        odd = tuple(kind for kind in ODD if kind not in OTHER_PROTOCOLS)
        oracle.send(Frames(odd, TARGET_ADDRESS, ECHO), name=f"{fault.name}: odd frames")
        oracle.send(Frames(PLAIN, "10.64.0.1", ECHO), name=f"{fault.name}: to an inner address")
        wait_until(mended, seconds=MENDED)
        after = Udp(TARGET_ADDRESS, ECHO)
        oracle.send(after, expect=Expect.DELIVERED, name=f"{fault.name}: afterwards")
    for sending in running:
        sending.stop()
    oracle.judge().assert_clean()


def as_tunnel(chain: ChainRig) -> Udp:
    """Aimed at the first server from the tunnel's own port: in the clear it would look like it."""
    own = source_port(0, 1, Slot.A)
    return Udp(*chain.endpoints[0], count=6000, rate=100, source_port=own)


class ChainRig:
    """Places are those of the lab (`host`, `client`, `server1` …), `panel`, `gateway`, `hopK`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.run_dir = lab.home / "run"
        self._settings = Settings(run_dir=self.run_dir, state_dir=lab.home / "state")
        self.leg = "198.19.0.3"
        """Hop 1's address towards the host."""
        self.servers = [lab.server(number) for number in range(1, HOPS + 1)]
        """Whom the chain uses, guard first."""
        self.former: set[str] = set()
        """Addresses of servers that an earlier chain of the same lab used."""

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        return [(str(server.plan.uplink.ip), server.plan.port) for server in self.servers]

    # As a user.

    def chainctl(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "chainctl", *words]
        done = self.lab.run("host", argv, timeout=90)
        assert not ok or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def up(self) -> None:
        self.chainctl("up", str(self.lab.chain_file))

    def down(self) -> None:
        self.chainctl("down")

    def status(self) -> dict[str, Any]:
        """The facts of the chain's status; {} when there is no chain."""
        try:
            # By the socket, since a process each time would disturb what is measured.
            chains = client.ask(self._settings, {"do": "status", "chain": ""}, _silent)
        except ChainctlError:
            chains = json.loads(self.chainctl("status", "--json", ok=False).stdout)["chains"]
        return chains[0] if chains else {}

    @property
    def is_open(self) -> bool:
        return bool(self.status().get("posture") == "open")

    def wait_open(self) -> None:
        wait_until(lambda: self.is_open)

    def wait_closed(self) -> None:
        wait_until(lambda: not self.is_open)

    def settle(self) -> None:
        """Whole and open, whatever an earlier test that failed has left."""
        self.ask_for_gateway()
        if self.status().get("why_closed"):
            self.chainctl("open", ok=False)
        if not self.is_open:
            self.down()
            self.up()

    def mended(self, *words: str) -> Callable[[], bool]:
        """Says from now on whether everything that has one of these words was mended since, the
        gate was opened after that, and nothing has happened for a while: what a fault breaks one
        after the other is mended in several turns.
        """
        begun = time.monotonic()
        (last, _, _), *_ = self.events()

        def looks_mended() -> bool:
            facts = self.status()
            now = time.monotonic()
            # Given in tenths of a second.
            new = [r["text"] for r in facts["repairs"] if now - r["seconds_ago"] > begun - 0.1]
            there = all(any(word in text for text in new) for word in words)
            return there and facts["posture"] == "open" and opened_again() and is_quiet()

        def is_quiet() -> bool:
            (_, _, at), *_ = self.events()
            return time.time() - at > QUIET

        def opened_again() -> bool:
            """What was found wrong is told when it is mended, and before the gate opens."""
            kinds = [kind for seq, kind, _ in self.events() if seq > last]
            told = [place for place, kind in enumerate(kinds) if kind == "repaired"]
            return "gate_opened" in kinds[: min(told, default=0)]

        return looks_mended

    def events(self) -> list[tuple[int, str, float]]:
        """(number, kind, seconds since 1970) of what the journal has, the newest first."""
        with contextlib.closing(sqlite3.connect(self.lab.home / "state/journal.sqlite")) as journal:
            rows: list[tuple[int, str, float]] = journal.execute(
                "SELECT seq, kind, at FROM event ORDER BY seq DESC LIMIT 500"
            ).fetchall()
        return rows

    # As root.

    def path(self, place: str) -> Path:
        """Of the namespace of a place."""
        if place == "panel":
            return self.run_dir / "netns/panel"
        if place == "gateway" or place.startswith("hop"):
            return self.run_dir / "netns" / f"{self.lab.name}.{place}"
        return Path("/run/netns", self.lab.namespace(place))

    def inside(self, place: str, work: Callable[[], T]) -> T:
        with self.path(place).open("rb") as entrance:
            return inside(entrance.fileno(), work)

    def run(self, place: str, *argv: str, stdin: str | None = None) -> str:
        """Run a program there as root, until its end."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path(place)}", *argv],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, (place, argv, done.stderr)
        return done.stdout

    def nft(self, place: str, commands: str) -> None:
        self.run(place, "nft", "-f", "-", stdin=commands)

    @property
    def places(self) -> list[str]:
        """Those of our own with a table, the host first."""
        return ["host", "panel", "gateway", *(f"hop{number}" for number in range(1, HOPS + 1))]

    @property
    def ports(self) -> dict[str, int]:
        """The panel's links but `lo`."""
        return {name: index for name, index in self.links("panel").items() if name != "lo"}

    def links(self, place: str) -> dict[str, int]:
        """Index by name."""
        links = json.loads(self.run(place, "ip", "-j", "link"))
        return {link["ifname"]: link["ifindex"] for link in links}

    @property
    def supervisor(self) -> int:
        return int((self.run_dir / "supervisor.pid").read_text())

    def client_pid(self, hop: int) -> int:
        """Of the VPN client in a hop."""
        state = self.run_dir / "runc" / f"{self.lab.name}.hop{hop}.a" / "state.json"
        return int(json.loads(state.read_text())["init_process_pid"])

    @contextmanager
    def supervisor_stopped(self) -> Iterator[None]:
        """It lives and does nothing; afterwards it mends what was done meanwhile, something."""
        pid = self.supervisor
        mended = self.mended("")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
        # Not only open: a gate that was held open is so before anything is mended.
        wait_until(mended)

    def hold_gates(self, seconds: float) -> None:
        """Both copies of the gate are open from now on for so long, unless somebody shuts them."""
        until = clock.boot_ns() + int(seconds * 1e9)
        with self.maps() as maps:
            maps.open_gate(self.ports["c0-gw"], until)
        timeout = f"timeout {int(seconds * 1000)}ms"
        add = f'add element inet chainctl open {{ "up0" {timeout} }}\n'
        delete = 'delete element inet chainctl open { "up0" }\n'
        self.nft("gateway", add + delete + add)

    def open_wires(self) -> None:
        """Every wire carries everything: of the two layers only nft is left."""
        for index in self.ports.values():
            self.inside("panel", partial(attach_open_wire, self.run_dir / "bpf", index))

    @contextmanager
    def maps(self) -> Iterator[PanelFilter]:
        """The filter's own maps, by their pins."""
        opened = PanelFilter.open(IDENTITY_OBJECT, self.run_dir / "bpf")
        try:
            yield opened
        finally:
            opened.close()

    def fingerprint(self) -> dict[str, Any]:
        """What must stay the same where nothing was rebuilt: inodes, indexes, processes."""
        found: dict[str, Any] = {}
        for place in self.places:
            found[place] = self.path(place).stat().st_ino
            found[f"{place} links"] = self.links(place)
        found["clients"] = [self.client_pid(number) for number in range(1, HOPS + 1)]
        return found

    # The oracle.

    def aim_at(self, mac: str) -> None:
        """The client has the gateway's address at `mac`, whether anybody has it or not."""
        neighbour = ("neigh", "replace", GATEWAY_ADDRESS, "lladdr", mac)
        self.run("client", "ip", *neighbour, "nud", "permanent", "dev", "eth0")

    def host_mac(self) -> str:
        (link,) = json.loads(self.run("host", "ip", "-j", "link", "show", "eth1"))
        return str(link["address"])

    def gateway_mac(self) -> str:
        """What the gateway has or would have, so that a client can be sure of it."""
        return lasting_mac(NsName(f"{self.lab.name}.gateway"), "lan0")

    def event(self, kind: str) -> float:
        """When the last event of this kind was, in seconds since 1970."""
        with contextlib.closing(sqlite3.connect(self.lab.home / "state/journal.sqlite")) as journal:
            (when,) = journal.execute(
                "SELECT max(at) FROM event WHERE kind = ?", (kind,)
            ).fetchone()
        return float(when or 0)

    def ask_for_gateway(self) -> None:
        """The client forgets what it was told by `aim_at`."""
        self.run("client", "ip", "neigh", "flush", "dev", "eth0", "nud", "permanent")

    def layer(self, hop: int) -> Layer:
        server, port = self.endpoints[hop - 1]
        return Layer(f"hop{hop}", server, source_port(0, hop, Slot.A), port)

    def send_everything(
        self,
        oracle: Oracle,
        *endpoints: tuple[str, int],
        expect: Expect = Expect.STOPPED,
    ) -> None:
        """What a client can think of, aimed at each endpoint, and questions to the gateway.

        `expect` is about plain IPv4; what is not that is to be stopped always.
        """
        if expect is Expect.STOPPED:
            oracle.battery(endpoints, resolver=GATEWAY_ADDRESS)
            return
        odd = tuple(kind for kind in ODD if kind not in OTHER_PROTOCOLS)
        running = [oracle.start(Dns(GATEWAY_ADDRESS), expect=expect)]
        for address, port in endpoints:
            running += [
                oracle.start(Udp(address, port), expect=expect),
                oracle.start(Udp(address, port, connected=True), expect=expect),
                oracle.start(Frames(PLAIN, address, port), expect=expect),
                oracle.start(Frames(OTHER_PROTOCOLS, address, port), expect=Expect.EITHER),
                oracle.start(Frames(odd, address, port)),
            ]
        for sending in running:
            sending.wait()

    def watch(self, oracle: Oracle, passing: Passing | None = None) -> None:
        """Watch the client's link, the host's, and all of the internet."""
        may = passing or Passing()
        host, internet = self.path("host"), self.path("internet")
        oracle.client(self.path("client"), "eth0", address=CLIENT, gateway=GATEWAY_ADDRESS)
        # The LAN's side of the gateway: a client's packets are seen there before any judgement.
        oracle.client(host, "eth1", address=CLIENT, gateway=GATEWAY_ADDRESS, name="LAN")
        flows = self._uplink(may)
        router = _router(str(HOST.ip))
        # The supervisor asks the router without a sender's address whether the uplink is there.
        line: list[Allowed] = [Arp(str(HOST.ip), router), Arp("0.0.0.0", router), *flows]
        line += [self._farewell, self._late]
        # Without a translation the host itself is asked, and says that nobody listens.
        line += [IcmpErrorAbout(flow) for flow in flows if may.naked]
        hides: list[Hidden] = [_LAN, _TUNNELS, self.layer(2), self.layer(3)]
        hides += [] if may.naked else [_LEGS]
        shows = [self.layer(1)] if may.layers else []
        oracle.watch(internet, "host", "W1", allow=line, hides=hides, shows=shows)
        oracle.watch(host, "eth0", "host eth0", allow=line, hides=hides, shows=shows)
        if not may.at_leg:
            leg = [self._flow(1, self.leg)] if may.tunnels else []
            oracle.watch(host, ANY, "host's other links", allow=leg)
        for hop in range(1, HOPS + 1):
            self._watch_server(oracle, hop, may)
        oracle.watch(
            *(internet, "target", "X"),
            allow=[Anything()],
            hides=[_LAN, _LEGS, _TUNNELS, *(self.layer(hop) for hop in (1, 2, 3))],
            may_carry_canaries=True,
        )

    @property
    def _farewell(self) -> Farewell:
        """Of servers that carried another chain before."""
        tcp = (each for each in self.lab.servers if each.plan.via == "tcp")
        return Farewell(frozenset(str(server.plan.uplink.ip) for server in tcp))

    @property
    def _late(self) -> Late:
        return Late(frozenset(self.former - {address for address, _ in self.endpoints}))

    def _watch_server(self, oracle: Oracle, hop: int, may: Passing) -> None:
        """The line of a server: the tuple it serves, the one it passes on, and what comes out."""
        server, _ = self.endpoints[hop - 1]
        flows = self._uplink(may) if hop == 1 else []
        if may.tunnels and hop > 1:
            flows.append(self._flow(hop, self.endpoints[hop - 2][0]))
        if may.tunnels and hop < HOPS:
            flows.append(self._flow(hop + 1, server))
        out_of_exit = may.tunnels and (hop == HOPS or may.at_servers)
        if out_of_exit:
            to = "0.0.0.0/0" if hop == HOPS else server
            exit_server = self.endpoints[-1][0]
            flows += [
                Flow(exit_server, None, to, None, protocol, fragments=True) for protocol in _CARRIED
            ]
        errors = [IcmpErrorAbout(flow) for flow in flows if out_of_exit or may.naked]
        naked = may.naked and hop == 1
        oracle.watch(
            *(self.path("internet"), self.servers[hop - 1].name, f"server{hop}"),
            allow=[Arp(server, _router(server)), *flows, *errors, self._farewell, self._late],
            hides=[
                *(_LAN, _TUNNELS, *([] if naked else [_LEGS])),
                *(self.layer(inner) for inner in range(hop + 2, HOPS + 1)),
            ],
            shows=[self.layer(k) for k in (hop, hop + 1) if k <= HOPS] if may.layers else [],
            may_carry_canaries=out_of_exit,
        )

    def _uplink(self, may: Passing) -> list[Flow]:
        """The one tuple that may leave this machine, perhaps without a translation."""
        sources = [str(HOST.ip), *([self.leg] if may.naked else [])]
        return [self._flow(1, source) for source in sources] if may.tunnels else []

    def _flow(self, hop: int, source: str) -> Flow:
        """The tuple of a hop, as seen where it comes from `source`."""
        server, port = self.endpoints[hop - 1]
        protocol = TCP if self.servers[hop - 1].plan.via == "tcp" else UDP
        return Flow(source, source_port(0, hop, Slot.A), server, port, protocol)


def _silent(step: dict[str, Any]) -> None:
    """A question about the status reports no steps."""


def _router(address: str) -> str:
    """The first address of the /24, where the lab's internet is."""
    return str(IPv4Address(int(IPv4Address(address)) & 0xFFFFFF00 | 1))


@contextmanager
def lab_alone(*, via: str = "", spares: int = 0) -> Iterator[ChainRig]:
    """A lab whose chain was never up; by default with one server a hop."""
    name = f"leak-{secrets.token_hex(3)}"
    engine = find_wireguard_go(Settings.load().image_dir)
    try:
        # One server a hop: what is watched here are states, not changes of servers. One frame on
        # a cable is one packet, so that what is seen is what passes.
        spec = LabSpec(name, spares=spares, via=via, offload=False)
        yield ChainRig(Lab.create(spec, wireguard_go=engine))
    finally:
        remove(name)
