"""The driver for namespaces, links, addresses, routes and rules.

The supervisor's plan hands in one part at a time, `make`, `change` and `remove` do it, and
`observe` lists what is there in the same words: what was made is seen as it was made.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import math
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar, assert_never

from chainctl.errors import MendHost
from chainctl.host import clock, sysctl, tun
from chainctl.host.netns import FORWARDING, Namespaces
from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    ForeignLink,
    Forwarding,
    LanLeg,
    LanMode,
    Leg,
    Namespace,
    NsName,
    Part,
    Route,
    Rule,
    Tun,
    Up,
)
from chainctl.net import links_seen, rtnl, rtnl_read
from chainctl.net.changes import Changes
from chainctl.net.links_seen import Sight
from chainctl.net.netlink import open_netlink
from chainctl.net.rtnl import IPRoute

LinkPart: TypeAlias = (
    Namespace | Leg | LanLeg | Tun | ForeignLink | Address | Up | Route | Rule | Forwarding
)
T = TypeVar("T")

_OF_ALL_CHAINS = (HOST, PANEL)
"""Where there are links of every chain, so that only those that changed are read again."""
_FEW = 64
"""Links that are read one by one; more are read faster with all others."""
_ABSENT = {
    errno.ENODEV,  # the link
    errno.EADDRNOTAVAIL,  # the address
    errno.ESRCH,  # the route
    errno.ENOENT,  # the rule, or its table
    errno.ENXIO,
}


@dataclass(frozen=True)
class _Seen:
    inode: int | None
    count: int
    """Of changes in the namespace before it was looked at."""
    at: float
    """Boot time from which on everything was read that has not changed since."""
    sight: Sight


class Links:
    """Makes, changes, removes and lists the parts of LinkPart. Safe to use from any thread.

    Each call may be repeated. All raise MendHost: C310 when the kernel refuses (its words in
    the message), C312 when the LAN's interface is missing, C313 when a name is taken by
    something that is not ours, C314 when the process lacks the right, C315 when something
    else holds what is needed.
    """

    def __init__(self, namespaces: Namespaces, changes: Changes) -> None:
        self._namespaces = namespaces
        self._changes = changes
        self._seen: dict[NsName, _Seen] = {}

    def make(self, part: LinkPart) -> None:
        """What exists already with the same content is left as it is."""
        try:
            self._make(part)
        except FileExistsError:
            if isinstance(part, Address):
                self._restore(part)
            if part not in self._around(part):
                raise MendHost(
                    "C313",
                    f"cannot make {part}: the name is taken by something else",
                    hint="see what it is with: ip link; then remove or rename it",
                ) from None
        except OSError as error:
            raise _refusal(part, error) from error

    def change(self, old: LinkPart, new: LinkPart) -> None:
        """In place where the kernel can, otherwise by removing and making."""
        try:
            self._change(old, new)
        except OSError as error:
            raise _refusal(new, error) from error

    def remove(self, part: LinkPart) -> None:
        """What is not there, or in a namespace that is not there, is removed already."""
        try:
            if self._has_place(part):
                self._remove(part)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise _refusal(part, error) from error

    def observe(
        self,
        namespaces: Iterable[NsName],
        *,
        port_prefix: str,
        forwarding: Iterable[str] = (),
        oldest: float = math.inf,
    ) -> list[Part]:
        """Every part in `namespaces` and, of one chain, those in the panel and the host's.

        `port_prefix` begins the names of the chain's ports; the host's end of such a port is
        the chain's too. `forwarding`: further links of the host whose forwarding is ours. A
        namespace whose settings are not as they should be is not listed, so that it is made
        again; what it contains is. What nobody was heard to change is not read again unless it
        was read more than `oldest` seconds ago.
        """
        names = [ns for ns in namespaces if ns not in (HOST, PANEL)]
        have_panel = self._namespaces.inode(PANEL) is not None
        present = [ns for ns in names if self._namespaces.inode(ns) is not None]
        places = (HOST, *([PANEL] if have_panel else []), *present)
        sights = [self.sight(ns, oldest=oldest) for ns in places]
        found = links_seen.parts(sights, port_prefix=port_prefix)
        legs = [part.link for part in found if isinstance(part, Leg) and part.ns == HOST]
        return [*found, *self._forwarding({*legs, *forwarding})]

    # Making.

    def _make(self, part: LinkPart) -> None:
        match part:
            case Namespace(name, forwarding):
                self._namespaces.create(name, FORWARDING if forwarding else {})
                # Nobody tells of most settings.
                self._seen.pop(name, None)
            case Leg():
                self._make_leg(part)
            case LanLeg():
                self._make_lan_leg(part)
            case Tun(ns, link, uid, mtu):
                self._namespaces.call(ns, lambda: tun.create(link, uid=uid, mtu=mtu))
            case Up(ns, link):
                self._set_link(ns, link, up=True)
            case Address(ns, link, interface):
                self._ask(ns, lambda r: rtnl.add_address(r, _index(link), interface))
            case Route(ns):
                self._ask(ns, lambda r: rtnl.put_route(r, _route(part)))
            case Rule(ns, priority, iif, mark, table):
                rule = rtnl.RuleSeen(priority, iif, mark, table)
                born = rule in links_seen.KERNELS_OWN_RULES
                with suppress(FileExistsError):
                    self._ask(ns, lambda r: rtnl.add_rule(r, rule, kernels_own=born))
            case Forwarding(link):
                self._host_setting(_forwarding_setting(link), "1")
            case ForeignLink():
                raise ValueError(f"{part} is not ours to make")
            case _:
                assert_never(part)

    def _make_leg(self, leg: Leg) -> None:
        def add(route: IPRoute) -> None:
            # Made where they stay, never moved: a port that was elsewhere for a moment could
            # have been reached there. NOARP, so that a flap has no neighbours to delete.
            rtnl.add_veth(
                route,
                leg.port,
                peer=leg.link,
                peer_namespace=self._namespaces.descriptor(leg.ns),
                mtu=leg.mtu,
                flags=rtnl.IFF_NOARP,
            )

        self._ask(PANEL, add)
        if leg.ns == HOST:
            self._without_ipv6(leg.link)

    def _make_lan_leg(self, leg: LanLeg) -> None:
        parent = self._ask(HOST, lambda r: rtnl.read_link(r, leg.parent))
        if parent is None or (leg.mode is LanMode.BRIDGE and parent.kind != "bridge"):
            wanted = "bridge" if leg.mode is LanMode.BRIDGE else "interface"
            raise MendHost(
                "C312", f"there is no {wanted} {leg.parent}", hint="see what there is with: ip link"
            )
        if leg.mode is LanMode.MACVLAN:
            self._ask(
                HOST,
                lambda r: rtnl.add_macvlan(
                    r,
                    leg.link,
                    parent=parent.index,
                    namespace=self._namespaces.descriptor(leg.ns),
                    mac=lasting_mac(leg.ns, leg.link),
                ),
            )
            return
        port = links_seen.bridge_port(leg.ns, leg.link)
        self._ask(
            HOST,
            lambda r: rtnl.add_veth(
                r,
                port,
                peer=leg.link,
                peer_namespace=self._namespaces.descriptor(leg.ns),
                # A smaller one would lower that of the whole bridge.
                mtu=parent.mtu,
                master=parent.index,
                peer_mac=lasting_mac(leg.ns, leg.link),
            ),
        )
        self._without_ipv6(port)
        self._set_link(HOST, port, up=True)

    def _restore(self, part: Address) -> None:
        """The address is there, but somebody flushed the route by which it is local."""
        try:
            self._ask(part.ns, lambda r: rtnl.restore_address(r, _index(part.link), part.interface))
        except FileExistsError:
            pass
        except OSError as error:
            raise _refusal(part, error) from error

    def _without_ipv6(self, link: str) -> None:
        """A link of the host begins to speak IPv6 when it goes up, so before that."""
        name = _ipv6_setting(link)
        if self._namespaces.call(HOST, lambda: sysctl.read(name)) is not None:
            self._host_setting(name, "1")

    # Changing.

    def _change(self, old: LinkPart, new: LinkPart) -> None:
        match old, new:
            case Namespace(), Namespace():
                self.make(new)
            case Leg(), Leg() if (old.ns, old.link, old.port) == (new.ns, new.link, new.port):
                self._set_link(new.ns, new.link, mtu=new.mtu)
                self._set_link(PANEL, new.port, mtu=new.mtu)
            case Tun(), Tun() if (old.ns, old.link, old.uid) == (new.ns, new.link, new.uid):
                self._set_link(new.ns, new.link, mtu=new.mtu)
            case Route(ns), Route() if old.key == new.key:
                self._ask(ns, lambda r: rtnl.put_route(r, _route(new), replace=True))
            case _:
                self.remove(old)
                self.make(new)

    # Removing.

    def _remove(self, part: LinkPart) -> None:
        match part:
            case Namespace(name):
                self.forget(name)
                self._namespaces.remove(name)
            case Leg(port=port):
                self._ask(PANEL, lambda r: rtnl.delete_link(r, port))
            case LanLeg(ns, link) | Tun(ns, link) | ForeignLink(ns, link):
                self._ask(ns, lambda r: rtnl.delete_link(r, link))
            case Up(ns, link):
                self._set_link(ns, link, up=False)
            case Address(ns, link, interface):
                self._ask(ns, lambda r: rtnl.delete_address(r, _index(link), interface))
            case Route(ns):
                self._ask(ns, lambda r: _remove_route(r, part))
            case Rule(ns, priority):
                self._ask(ns, lambda r: rtnl.delete_rule(r, priority))
            case Forwarding(link):
                if self._forwarding([link]):
                    self._host_setting(_forwarding_setting(link), "0")
            case _:
                assert_never(part)

    def _has_place(self, part: LinkPart) -> bool:
        if isinstance(part, Namespace | Forwarding):
            return True
        ns = PANEL if isinstance(part, Leg) else part.ns
        return ns == HOST or self._namespaces.inode(ns) is not None

    # Looking.

    def sight(self, ns: NsName, *, oldest: float = math.inf) -> Sight:
        """The namespace as it is, not read again as long as nothing was heard of it."""
        known = self._still_so(ns, oldest)
        return known or self._namespaces.call(ns, lambda: self._look(ns, oldest))

    def _still_so(self, ns: NsName, oldest: float) -> Sight | None:
        known = self._seen.get(ns)
        if known is None or (known.inode, known.count) != (
            self._namespaces.inode(ns),
            self._changes.count(ns),
        ):
            return None
        return known.sight if clock.boot_seconds() - known.at <= oldest else None

    def forget(self, ns: NsName) -> None:
        """It is to be removed."""
        self._seen.pop(ns, None)
        self._changes.forget(ns)

    def _look(self, ns: NsName, oldest: float) -> Sight:
        known = self._still_so(ns, oldest)
        if known is not None:
            return known  # Somebody has looked while this thread had other things to do.
        inode, now = self._namespaces.inode(ns), clock.boot_seconds()
        self._changes.follow(ns)
        # Before anything is read: what changes meanwhile makes the next one read again.
        count, changed = self._changes.count(ns), self._changes.take_links(ns)
        # Taken away: if this look fails, nobody knows any more what changed since that one.
        before = self._seen.pop(ns, None)
        if before is not None and (before.inode != inode or now - before.at > oldest):
            before = None
        with open_netlink() as link:
            if before is None or changed is None or len(changed) > _FEW or ns not in _OF_ALL_CHAINS:
                at, sight = now, self._read_links(ns, link)
            else:
                at, sight = before.at, _with_links_read_again(before.sight, link, changed)
            sight = replace(
                sight,
                addresses=rtnl_read.read_addresses(link),
                routes=rtnl_read.read_routes(link),
                rules=rtnl_read.read_rules(link),
                panel=self._nsid(link, PANEL),
                host=None if ns == HOST else self._nsid(link, HOST),
            )
        self._seen[ns] = _Seen(inode, count, at, sight)
        return sight

    def _read_links(self, ns: NsName, link: socket.socket) -> Sight:
        """With what it takes to read each setting."""
        links = rtnl_read.read_links(link)
        if ns in _OF_ALL_CHAINS:
            self._changes.know(ns, {each.index: each.name for each in links})
        return Sight(
            ns,
            links,
            forwarding=None if ns == HOST else self._is_forwarding(ns),
            without_ipv6=_without_ipv6(links) if ns == HOST else frozenset(),
        )

    def _nsid(self, link: socket.socket, ns: NsName) -> int | None:
        if ns != HOST and self._namespaces.inode(ns) is None:
            return None
        return rtnl_read.read_nsid(link, self._namespaces.descriptor(ns))

    def _is_forwarding(self, ns: NsName) -> bool | None:
        if self._namespaces.holds(ns, FORWARDING):
            return True
        return False if self._namespaces.holds(ns, {}) else None

    def _forwarding(self, links: Iterable[str]) -> list[Part]:
        def look() -> list[Part]:
            settings = {_forwarding_setting(link): link for link in links}
            found = sysctl.read_all(settings)
            return [Forwarding(settings[name]) for name, value in found.items() if value == "1"]

        return self._namespaces.call(HOST, look)

    def _around(self, part: LinkPart) -> list[Part]:
        """What is where `part` would be."""
        ns = HOST if isinstance(part, Namespace | Forwarding) else part.ns
        return self.observe([ns], port_prefix=part.port if isinstance(part, Leg) else "")

    # Asking.

    def _ask(self, ns: NsName, request: Callable[[IPRoute], T]) -> T:
        """`request` inside `ns`; what the kernel refuses is an OSError as everywhere."""
        try:
            return self._namespaces.netlink(ns, request)
        except rtnl.NetlinkError as error:
            raise OSError(*error.args) from error

    def _set_link(
        self, ns: NsName, link: str, *, mtu: int | None = None, up: bool | None = None
    ) -> None:
        self._ask(ns, lambda r: rtnl.set_link(r, link, mtu=mtu, up=up))

    def _host_setting(self, name: str, value: str) -> None:
        self._namespaces.call(HOST, lambda: sysctl.write(name, value))


def _with_links_read_again(before: Sight, link: socket.socket, changed: Iterable[int]) -> Sight:
    links = {each.index: each for each in before.links}
    old = {links.pop(index).name for index in changed if index in links}
    new = [seen for index in changed if (seen := rtnl_read.read_link(link, index)) is not None]
    links.update({each.index: each for each in new})
    without = _without_ipv6(new) if before.ns == HOST else frozenset()
    return replace(
        before,
        links=tuple(links.values()),
        without_ipv6=before.without_ipv6 - old | without,
    )


def _remove_route(route: IPRoute, part: Route) -> None:
    with open_netlink() as link:
        routes = rtnl_read.read_routes(link)
    there = {(seen.table, seen.to, seen.metric) for seen in routes if not seen.kernels}
    if (part.table, part.to, part.metric) in there:
        rtnl.delete_route(route, rtnl.RouteSeen(part.table, part.to, None, None, part.metric))


def _route(part: Route) -> rtnl.RouteSeen:
    index = None if part.link is None else _index(part.link)
    key = part.table, part.to, index, part.source, part.metric
    return rtnl.RouteSeen(*key, mtu=part.mtu, via=part.via)


def lasting_mac(ns: NsName, link: str) -> str:
    """The same whenever this machine makes the leg: devices keep the gateway's in their caches.

    Locally administered and unicast (IEEE 802, bits 1 and 0 of the first byte).
    """
    digest = hashlib.sha256(f"{_machine_id()}/{ns}/{link}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


@functools.cache
def _machine_id() -> str:
    """machine-id(5); empty where there is none."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


def _index(link: str) -> int:
    """In the namespace of the calling thread."""
    try:
        return socket.if_nametoindex(link)
    except OSError:
        raise OSError(errno.ENODEV, f"there is no link {link}") from None


def _without_ipv6(links: Iterable[rtnl.LinkSeen]) -> frozenset[str]:
    settings = {_ipv6_setting(link.name): link.name for link in links if link.kind == "veth"}
    found = sysctl.read_all(settings)
    return frozenset(settings[name] for name, value in found.items() if value in ("1", None))


def _forwarding_setting(link: str) -> str:
    return f"net/ipv4/conf/{link}/forwarding"


def _ipv6_setting(link: str) -> str:
    return f"net/ipv6/conf/{link}/disable_ipv6"


def _refusal(part: LinkPart, error: OSError) -> MendHost:
    what = f"{type(part).__name__} {' '.join(part.key[1:])}"
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return MendHost("C314", f"{what}: {reason}", hint="run as root")
        case errno.EBUSY:
            return MendHost(
                "C315",
                f"{what}: {reason}",
                hint="something else uses it; an interface that is part of a bridge or bond "
                "cannot be shared: name the bridge instead",
            )
        case _:
            return MendHost("C310", f"{what}: {reason}", hint="chainctl doctor")
