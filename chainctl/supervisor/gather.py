"""Reads what `resolve` needs: the chain file, the machine, and what was chosen before."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from chainctl.errors import MendFile
from chainctl.host.resolver import lookup_ipv4
from chainctl.images.lock import ImageKind
from chainctl.model.chain import Slot
from chainctl.model.clients import NO_DOCKER, DockerSeen
from chainctl.model.facts import NetworkFacts
from chainctl.model.parts import LanMode, RuntimeKind
from chainctl.model.pushed import Pushed
from chainctl.model.selection import HopSelection
from chainctl.net.facts import read_network
from chainctl.spec.chain_file import load_chain_file
from chainctl.spec.logins import check_logins
from chainctl.spec.model import ChainSpec, OpenVpnServer
from chainctl.spec.overlap import check_overlap
from chainctl.spec.pins import resolve_endpoints
from chainctl.store.journal import Journal
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.resolve import Facts
from chainctl.supervisor.rotation import Rotations

_LEG = re.compile(r"chain\d+")
"""In the host's namespace, of any chain."""
_READING = threading.Lock()


@dataclass(frozen=True)
class Gathered:
    spec: ChainSpec
    facts: Facts

    @property
    def summary(self) -> str:
        servers = sum(len(hop.pool) for hop in self.spec.hops)
        return f"{len(self.spec.hops)} hops, {servers} servers"

    @property
    def notices(self) -> tuple[str, ...]:
        """What the profiles say and chainctl does differently, and what names stand for."""
        names = tuple(f"{name} is {address}" for name, address in self.facts.names.items())
        first = {notice.code: notice for notice in reversed(list(self.spec.notices))}
        count = Counter(notice.code for notice in self.spec.notices)
        return (
            *(
                f"{notice} (and {count[code] - 1} more like it)" if count[code] > 1 else str(notice)
                for code, notice in sorted(first.items())
            ),
            *names,
        )

    def with_path_mtus(self, known: Mapping[str, int]) -> Gathered:
        return replace(self, facts=replace(self.facts, path_mtus=known))

    def with_pushed(self, hop: str, slot: Slot, said: Pushed | None) -> Gathered:
        """`said` None: nothing is known any more."""
        pushed = {key: value for key, value in self.facts.pushed.items() if key != (hop, slot)}
        if said is not None:
            pushed[hop, slot] = said
        return replace(self, facts=replace(self.facts, pushed=pushed))

    def with_docker(self, seen: DockerSeen) -> Gathered:
        return replace(self, facts=replace(self.facts, docker=seen))

    def with_selection(self, hop: str, chosen: HopSelection) -> Gathered:
        selection = {**self.facts.selection, hop: chosen}
        return replace(self, facts=replace(self.facts, selection=selection))


def gather(file: Path, machine: Machine, journal: Journal) -> Gathered:
    """Raises MendFile for everything wrong with the file, before anything is changed."""
    spec = load_chain_file(file)
    network = _read_network()
    wanted = journal.chain(spec.name)
    names = _pinned_names(spec, journal, running=bool(wanted and wanted.up))
    overlaps = check_overlap(spec, _foreign_routes(network), names)
    complaints = (*overlaps, *check_logins(spec))
    if complaints:
        raise MendFile.of(complaints)
    number = wanted.number if wanted else machine.free_number(journal)
    return Gathered(
        spec,
        Facts(
            number=number,
            network=network,
            selection=recall_selection(spec.name, journal),
            names=names,
            engine=machine.engine(),
            image=machine.image().digest,
            forwarded_before=_forwarded_before(spec, network, machine, journal),
            runtime=spec.runtime or _runtime(spec.name, machine, journal),
            guards=Rotations(spec.name, journal).first_guards(spec, names),
            path_mtus=journal.recall(spec.name, "path_mtus", {}),
            openvpn_image=_openvpn_image(spec, machine),
            pushed=recall_pushed(spec.name, journal),
            docker=_docker(spec, machine),
        ),
    )


def _docker(spec: ChainSpec, machine: Machine) -> DockerSeen:
    """Not asked for a chain without containers."""
    uses = any(lan.mode is LanMode.DOCKER for lan in spec.lans)
    return machine.look_at_docker(spec.name) if uses else NO_DOCKER


def _openvpn_image(spec: ChainSpec, machine: Machine) -> str:
    """Not built for a chain that has no use for it."""
    uses = any(isinstance(profile, OpenVpnServer) for profile in spec.profiles)
    return machine.image(ImageKind.OPENVPN).digest if uses else ""


def recall_pushed(name: str, journal: Journal) -> dict[tuple[str, Slot], Pushed]:
    """What servers said earlier; it is compared with what they say now before it counts."""
    found = {}
    for key, value in journal.recall(name, "pushed", {}).items():
        with suppress(KeyError, TypeError, ValueError):
            hop, _, slot = key.rpartition(".")
            found[hop, Slot[slot]] = Pushed.from_json(value)
    return found


def remember_pushed(name: str, journal: Journal, pushed: Mapping[tuple[str, Slot], Pushed]) -> None:
    values = {f"{hop}.{slot.name}": said.to_json() for (hop, slot), said in pushed.items()}
    journal.remember(name, "pushed", values)


def recall_selection(name: str, journal: Journal) -> dict[str, HopSelection]:
    """What was chosen earlier; anything that is no selection counts as nothing chosen."""
    found = {}
    for hop, value in journal.recall(name, "selection", {}).items():
        with suppress(KeyError, TypeError, AttributeError):
            found[hop] = HopSelection.from_json(value)
    return found


def _runtime(name: str, machine: Machine, journal: Journal) -> RuntimeKind:
    """`auto`: as it came up, for as long as it is up, whatever becomes of Docker meanwhile."""
    remembered = journal.recall(name, "runtime")
    return RuntimeKind(remembered) if remembered else machine.runtime()


def _pinned_names(spec: ChainSpec, journal: Journal, *, running: bool) -> dict[str, IPv4Address]:
    """Names are looked up once; while a chain runs nothing is asked in the clear."""
    known = journal.recall(spec.name, "names", {})
    pins = {name: IPv4Address(address) for name, address in known.items()}
    pinned = resolve_endpoints(spec.profiles, pins, _nobody if running else lookup_ipv4)
    return dict(pinned.pins)


def _read_network() -> NetworkFacts:
    """Without the legs of chains: each chain keeps what was read, and of 200 legs each would keep
    all. One at a time: each reading takes some megabytes of memory, and where many chains are taken
    over at once they would stay with the process.
    """
    with _READING:
        return read_network(lambda name: _LEG.fullmatch(name) is not None)


def _nobody(_name: str) -> tuple[IPv4Address, ...]:
    """Stands in for the resolver: a server with a new name waits for the next `down`."""
    return ()


def _foreign_routes(network: NetworkFacts) -> list[IPv4Network]:
    """Where the host can go."""
    return [
        route.to
        for route in network.routes
        if isinstance(route.to, IPv4Network) and route.link is not None
    ]


def _forwarded_before(
    spec: ChainSpec, network: NetworkFacts, machine: Machine, journal: Journal
) -> bool:
    """As it was when the chain came up for the first time: afterwards it forwards for us."""
    route = network.default_route
    name = spec.wan.interface or (route.link if route else "") or ""
    remembered = journal.recall(spec.name, "forwarded_before")
    if remembered is not None and journal.recall(spec.name, "uplink", name) == name:
        return bool(remembered)
    if machine.uplink_made_to_forward(spec.name) == name != "":
        return False  # The journal was lost while the chain was up.
    link = network.link(name)
    return bool(link and link.forwarding) and not _forwards_for_us(name, journal)


def _forwards_for_us(uplink: str, journal: Journal) -> bool:
    """Another chain has made it forward."""
    return any(
        journal.recall(chain.name, "uplink") == uplink
        and journal.recall(chain.name, "forwarded_before") is False
        for chain in journal.chains()
    )
