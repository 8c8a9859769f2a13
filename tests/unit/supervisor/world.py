"""A machine without a machine: which parts exist, and what the kernel does with the others.

`World.take` carries a step of a plan out on the parts, as the drivers do on the kernel: what
needs something that is not there cannot come into being, and what goes takes along what the
kernel takes along. Where packets get in such a world is for `tests.unit.supervisor.reach`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from chainctl.model.chain import Chain
from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    Client,
    FarEnd,
    ForeignLink,
    Forwarding,
    KernelWireGuard,
    Key,
    LanLeg,
    Leg,
    Namespace,
    NftTable,
    NsName,
    Part,
    PortFilter,
    PortName,
    PortRow,
    Route,
    RuntimeKind,
    Tun,
    TunFilter,
    TunnelConfig,
    Up,
    WireTuple,
    client_key,
)
from chainctl.net.guard import TABLE
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, Step

Link = Leg | LanLeg | Tun | KernelWireGuard | ForeignLink
NOWHERE = NsName("?")
"""Where a client is whose namespace lost its name."""


class ImpossibleError(Exception):
    """The kernel, or a driver, would refuse this step."""


class World:
    """`proved`: hops that answered since anything was changed.

    `passing`: ports whose filter was replaced by one that lets everything cross the wire.
    """

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts: dict[Key, Part] = {}
        self.filter_gate_open = False
        self.table_gate_open = False
        self.proved: set[int] = set()
        self.passing: set[PortName] = set()
        waiting = list(parts)
        while waiting:
            possible = [part for part in waiting if self._lacks(part) is None]
            for part in possible:
                if self._lacks(part) is None:
                    self.parts[part.key] = part
            if not possible:
                return
            waiting = [part for part in waiting if part not in possible]

    def copy(self) -> Self:
        other = type(self)()
        other.parts = dict(self.parts)
        other.filter_gate_open = self.filter_gate_open
        other.table_gate_open = self.table_gate_open
        other.proved = set(self.proved)
        other.passing = set(self.passing)
        return other

    def opened(self, chain: Chain) -> Self:
        """The same world with every hop proved and the gate open."""
        self.proved = {hop.number for hop in chain.hops}
        self.filter_gate_open = self.table_gate_open = True
        return self

    def take(self, step: Step) -> None:
        """Raises ImpossibleError."""
        match step:
            case CloseGate():
                self.filter_gate_open = self.table_gate_open = False
            case OpenGate():
                self.filter_gate_open = self.table_gate_open = True
            case Prove(hop):
                self.proved.add(hop)
            case Make(part):
                self._make(part)
            case Change(old, new):
                if self.parts.get(old.key) != old or old.key != new.key:
                    raise ImpossibleError(f"there is no {old} to change")
                if isinstance(old, Leg) and isinstance(new, Leg) and old.port != new.port:
                    raise ImpossibleError(f"a leg cannot change its port: {new}")
                self.parts[new.key] = new
                self._forget_proofs()
            case Remove(part):
                self.lose(part.key)
                self._forget_proofs()

    def _make(self, part: Part) -> None:
        if self.parts.get(part.key, part) != part:
            raise ImpossibleError(f"exists already: {self.parts[part.key]}")
        lacking = self._lacks(part)
        if lacking is not None:
            raise ImpossibleError(f"{part} needs {lacking}")
        self.parts[part.key] = part
        if isinstance(part, PortFilter):
            self.passing.discard(part.port)
        self._forget_proofs()

    def _forget_proofs(self) -> None:
        self.proved.clear()

    def lose(self, key: Key) -> None:
        """The part is gone, and with it what the kernel takes away with it."""
        part = self.parts.pop(key, None)
        if part is None:
            return
        for other in list(self._taken_along(part)):
            self.lose(other.key)
        match part:
            case NftTable(table=table) if table == TABLE and part.ns.endswith(".gateway"):
                self.table_gate_open = False
            case Leg(port=port):
                self.passing.discard(port)
                if port.endswith("-gw"):
                    self.filter_gate_open = False
            case Namespace(name):
                self._unname_clients(name)

    def _unname_clients(self, ns: NsName) -> None:
        for other in list(self.parts.values()):
            if isinstance(other, Client) and other.ns == ns:
                self.parts[other.key] = Client(
                    other.name, NOWHERE, other.link, other.uid, other.image
                )

    # What the kernel refuses.

    def _lacks(self, part: Part) -> str | None:
        """What has to be there first; None when nothing is missing."""
        ns: NsName = getattr(part, "ns", HOST)
        if ns not in (HOST, NOWHERE) and ("namespace", ns) not in self.parts:
            return f"the namespace {ns}"
        match part:
            case Leg(port=port):
                if ("namespace", PANEL) not in self.parts:
                    return "the panel"
                return f"the name {port}" if self._leg(port) else None
            case PortRow(port) | WireTuple(port) | PortFilter(port):
                return self._lacks_port(port)
            case FarEnd(port, far):
                return self._lacks_port(port) or self._lacks_port(far)
            case Up(link=link) if ns == PANEL:
                return self._lacks_port(PortName(link))
            case Address(link=link) | Up(link=link) | TunFilter(link=link):
                return self._lacks_link(ns, link)
            case Route(link=str(link)):
                if link not in self._outside(ns) and ("up", ns, link) not in self.parts:
                    return f"{link} up in {ns!r}"
                return self._lacks_source(part)
            case Forwarding(link):
                return None if link in self._outside(HOST) else self._lacks_link(HOST, link)
            case Client(link=link):
                is_tun = isinstance(self.parts.get(("link", ns, link)), Tun)
                return None if is_tun or ns == NOWHERE else f"the TUN {link} in {ns!r}"
            case TunnelConfig(name=name, link=link):
                kernel = isinstance(self.parts.get(("link", ns, link)), KernelWireGuard)
                return (
                    None
                    if kernel or client_key(name, RuntimeKind.EMBEDDED) in self.parts
                    else f"the client {name}"
                )
            case _:
                return None

    def _lacks_port(self, port: PortName) -> str | None:
        return None if self._leg(port) else f"the port {port}"

    def _lacks_link(self, ns: NsName, link: str) -> str | None:
        return None if ("link", ns, link) in self.parts else f"the link {link} in {ns!r}"

    def _lacks_source(self, route: Route) -> str | None:
        """The kernel takes a preferred source only when it is an address of the namespace."""
        if route.source is None:
            return None
        local = {
            part.interface.ip
            for part in self.parts.values()
            if isinstance(part, Address) and part.ns == route.ns
        }
        return None if route.source in local else f"the address {route.source}"

    @staticmethod
    def _outside(ns: NsName) -> tuple[str, ...]:
        """Links that are not ours and always there."""
        return ("eth0",) if ns == HOST else ()

    def _leg(self, port: PortName) -> Leg | None:
        for part in self.parts.values():
            if isinstance(part, Leg) and part.port == port:
                return part
        return None

    # What the kernel takes along.

    def _taken_along(self, gone: Part) -> Iterator[Part]:
        parts = self.parts.values()
        match gone:
            case Namespace(name):
                # A process is not taken along, and neither is what is written about a port.
                yield from (
                    part
                    for part in parts
                    if getattr(part, "ns", HOST) == name
                    and not isinstance(part, Client | TunnelConfig)
                )
                if name == PANEL:
                    yield from (part for part in parts if isinstance(part, Leg))
            case Leg() | LanLeg() | Tun() | KernelWireGuard() | ForeignLink():
                yield from (part for part in parts if _hangs_on(part, gone))
                if isinstance(gone, Leg):
                    yield from (part for part in parts if self._is_about(part, gone.port))
            case Up(ns, link):
                yield from (
                    part
                    for part in parts
                    if isinstance(part, Route) and (part.ns, part.link) == (ns, link)
                )
            case Address():
                yield from self._routes_without(gone)
            case Client(name):
                yield from (p for p in parts if isinstance(p, TunnelConfig) and p.name == name)

    def _is_about(self, part: Part, port: PortName) -> bool:
        """The driver forgets a port's rows with its leg; the kernel forgets it as a far end."""
        match part:
            case PortRow(port=about) | WireTuple(port=about) | PortFilter(port=about):
                return about == port
            case FarEnd(near, far):
                return port in (near, far)
            case Up(ns, link):
                return ns == PANEL and link == port
            case _:
                return False

    def _routes_without(self, address: Address) -> Iterator[Part]:
        """Routes that prefer it, and with a link's last address all routes by the link

        (fib_inetaddr_event in net/ipv4/fib_frontend.c; seen on 6.18).
        """
        last = not any(
            isinstance(part, Address) and (part.ns, part.link) == (address.ns, address.link)
            for part in self.parts.values()
        )
        for part in self.parts.values():
            if not isinstance(part, Route) or part.ns != address.ns:
                continue
            if part.source == address.interface.ip or (last and part.link == address.link):
                yield part


def _hangs_on(part: Part, link: Link) -> bool:
    match part:
        case Address() | Up() | Route() | TunFilter():
            return (part.ns, part.link) == (link.ns, link.link)
        case TunnelConfig() if isinstance(link, KernelWireGuard):
            return (part.ns, part.link) == (link.ns, link.link)
        case Forwarding(name):
            return link.ns == HOST and name == link.link
        case _:
            return False
