"""Hears what anybody changes in the namespaces: links, addresses, routes, rules, filters, tables.

The kernel tells it to two netlink sockets in the host's namespace, of every namespace that has
a number there (NETLINK_LISTEN_ALL_NSID, netlink(7)); `follow` gives it one. It tells before the
call that changed something returns, so that who has drained the sockets knows of everything
that was done before. What it does not tell: most settings, programs of TCX, rows of maps.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from chainctl.host.netns import Namespaces
from chainctl.model.parts import HOST, PANEL, NsName
from chainctl.net.netlink import (
    ACK,
    NETFILTER,
    Message,
    ask,
    pack_attribute,
    parse_attributes,
    split,
)
from chainctl.net.netlink import open_netlink as _open
from chainctl.net.rtnl_read import read_nsid

_SOL_NETLINK, _ADD_MEMBERSHIP, _LISTEN_ALL_NSID = 270, 1, 8
_SO_RCVBUFFORCE = 33
_ROOM = 1 << 23
"""Bytes of socket buffer: bringing a chain up is told in some 300 messages of 1 KiB."""

# enum rtnetlink_groups of linux/rtnetlink.h, enum nfnetlink_groups of linux/netfilter/nfnetlink.h
_LINK, _TC, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV4_RULE, _IPV4_NETCONF = 1, 4, 5, 7, 8, 24
_NFTABLES = 7

_LINKS, _ADDRESSES, _ROUTES, _RULES = {16, 17}, {20, 21}, {24, 25}, {32, 33}
_FILTERS = {*range(36, 48), *range(100, 103)}
"""Queueing disciplines, their classes, filters, actions; and the chains of filters."""
_SETTINGS = {80, 81}
_IFNAME, _OIF, _IIFNAME, _NETCONF_INDEX, _TABLE_NAME = 3, 4, 3, 1, 1
_NEW_NSID, _NSID, _NSID_FD = 88, 1, 3
_NEW_ELEMENT, _DELETE_ELEMENT, _NEW_GENERATION = 0xA0C, 0xA0E, 0xA0F
_NUMBER = struct.Struct("=i")

QUIET = 0xC4A1C4A1
"""An address for sockets; the kernel gives out process ids and numbers from 2^32 - 4096 down."""
_SO_ATTACH_FILTER = 26
# linux/bpf_common.h: BPF_LD with BPF_H and BPF_W, BPF_JMP with BPF_JEQ, BPF_RET.
_LOAD_HALF, _LOAD_WORD, _IF_EQUAL, _RETURN = 0x28, 0x20, 0x15, 0x06


class Touched(NamedTuple):
    """Something in `ns` changed; `what` names a link or a table, "" if it is more than one."""

    ns: NsName
    what: str


class Changes:
    """Safe to use from several threads."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._lock = threading.RLock()
        self._by_nsid: dict[int, NsName] = {}
        self._followed: dict[NsName, int] = {}
        """By the inode of the namespace."""
        self._names: dict[tuple[NsName, int], str] = {}
        self._counts: dict[tuple[NsName, bool], int] = {}
        self._links: dict[NsName, set[int] | None] = {}
        """Indexes of the links that changed since somebody asked for them; None: any."""
        self._missed = 0
        self._touched: set[Touched] = set()
        self._nameless: set[tuple[NsName, int]] = set()
        """Namespaces and indexes of links: of a new one the kernel tells its settings first, and
        its name after that.
        """
        self._waited_for: set[tuple[NsName, int]] = set()
        """Those of them that were not taken the last time."""
        self._everything = False
        self._quiet: set[int] = set()
        opened = namespaces.call(HOST, lambda: (_open(), _open(NETFILTER)))
        self.routing, self.tables = opened
        _listen(self.routing, _LINK, _TC, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV4_RULE, _IPV4_NETCONF)
        _leave_out_what_is_quiet(self.tables)
        _listen(self.tables, _NFTABLES)

    def close(self) -> None:
        self.routing.close()
        self.tables.close()

    def follow(self, ns: NsName) -> None:
        """Hear of `ns` from now on; twice is fine. To be called within `Namespaces.call`."""
        inode = self._namespaces.inode(ns)
        with self._lock:
            if ns == HOST or inode is None or self._followed.get(ns) == inode:
                return
        descriptor = self._namespaces.descriptor(ns)
        number = self._namespaces.call(HOST, lambda: _ensure_nsid(descriptor))
        with self._lock:
            self._by_nsid[number] = ns
            self._followed[ns] = inode
            self._links.pop(ns, None)
            self._count(ns)

    def lost(self) -> frozenset[NsName]:
        """Namespaces whose pin is gone, or is now the pin of another one."""
        with self._lock:
            followed = dict(self._followed)
        return frozenset(
            ns for ns, inode in followed.items() if self._namespaces.inode(ns) != inode
        )

    def forget(self, ns: NsName) -> None:
        """It is to be removed, so nobody misses it."""
        with self._lock:
            self._followed.pop(ns, None)

    def pass_over(self, sender: int) -> None:
        """What the socket of this address does to elements of sets is no news.

        Of the address QUIET, which sockets in different namespaces may share, the kernel does not
        even tell.
        """
        with self._lock:
            self._quiet.add(sender)

    def count(self, ns: NsName, *, tables: bool = False) -> int:
        """As long as this number stays the same, so did what it is about: the namespace's
        links, addresses, routes, rules and filters, or its nft tables.
        """
        with self._lock:
            self.drain()
            return self._missed + self._counts.get((ns, tables), 0)

    def take_links(self, ns: NsName) -> frozenset[int] | None:
        """Indexes of the links that are not as they were at the last call; None: any of them, or
        what holds for all of them. Of addresses, routes and rules it says nothing.
        """
        with self._lock:
            self.drain()
            links, self._links[ns] = self._links.get(ns), set()
            return None if links is None else frozenset(links)

    def take(self) -> frozenset[Touched] | None:
        """What changed since the last call; None: there is no telling, so anything."""
        with self._lock:
            self.drain()
            # In the panel what has no name may be of any chain, so a name is waited for once.
            unknown = {link for link in self._nameless if link not in self._names}
            waits = {link for link in unknown if link[0] == PANEL} - self._waited_for
            ready = self._nameless - waits
            named = {Touched(ns, self._names.get((ns, at), "")) for ns, at in ready}
            touched = frozenset(self._touched | named)
            self._touched, self._nameless, self._waited_for = set(), set(waits), waits
            everything, self._everything = self._everything, False
            return None if everything else touched

    def drain(self) -> None:
        with self._lock:
            for link, hear in ((self.routing, self._routed), (self.tables, self._filtered)):
                for ns, message in self._received(link):
                    hear(ns, message)

    def _received(self, link: socket.socket) -> Iterator[tuple[NsName, Message]]:
        while True:
            try:
                data, about, _, _ = link.recvmsg(1 << 17, socket.CMSG_SPACE(_NUMBER.size))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._missed += 1
                self._everything = True
                self._links.clear()
                continue
            ns = self._namespace(about)
            if ns is not None:
                yield from ((ns, message) for message in split(data))

    def _namespace(self, about: list[tuple[int, int, bytes]]) -> NsName | None:
        for level, kind, data in about:
            if (level, kind) == (_SOL_NETLINK, _LISTEN_ALL_NSID):
                return self._by_nsid.get(_NUMBER.unpack(data)[0])
        return HOST

    def _routed(self, ns: NsName, message: Message) -> None:
        self._count(ns)
        self._note_link(ns, message)
        what = self._link_of(ns, message)
        if isinstance(what, str):
            self._touched.add(Touched(ns, what))
        else:
            self._nameless.add((ns, what))

    def _filtered(self, ns: NsName, message: Message) -> None:
        if message.kind == _NEW_GENERATION:
            return  # Comes after every change, whosever it was.
        if message.sender in self._quiet and message.kind in (_NEW_ELEMENT, _DELETE_ELEMENT):
            return
        key = (ns, True)
        self._counts[key] = self._counts.get(key, 0) + 1
        # In every message about tables the first attribute is the table's name.
        name = parse_attributes(message.body, 4).get(_TABLE_NAME, b"")
        self._touched.add(Touched(ns, name.rstrip(b"\0").decode(errors="replace")))

    def _note_link(self, ns: NsName, message: Message) -> None:
        kind, noted = message.kind, self._links.get(ns)
        if noted is None or kind in _ADDRESSES | _ROUTES | _RULES | _FILTERS:
            return
        index = 0
        if kind in _LINKS:
            index = _NUMBER.unpack_from(message.body, 4)[0]
        elif kind in _SETTINGS:
            index = _index(parse_attributes(message.body, 4).get(_NETCONF_INDEX))
        if index > 0:
            noted.add(index)
        else:
            self._links[ns] = None

    def _link_of(self, ns: NsName, message: Message) -> str | int:
        """Its name, or its index when that has no name yet."""
        kind, body = message.kind, message.body
        if kind in _LINKS:
            index = _NUMBER.unpack_from(body, 4)[0]
            name = parse_attributes(body, 16).get(_IFNAME, b"").rstrip(b"\0").decode()
            if name:
                self._names[ns, index] = name
            return name
        if kind in _ADDRESSES or kind in _FILTERS:
            index = _NUMBER.unpack_from(body, 4)[0]
        elif kind in _ROUTES:
            index = _index(parse_attributes(body, 12).get(_OIF))
        elif kind in _SETTINGS:
            index = _index(parse_attributes(body, 4).get(_NETCONF_INDEX))
        elif kind in _RULES:
            return parse_attributes(body, 12).get(_IIFNAME, b"").rstrip(b"\0").decode()
        else:
            return ""
        return self._names.get((ns, index), index if index > 0 else "")

    def know(self, ns: NsName, names: dict[int, str]) -> None:
        """The links that are there, so that what is said of a number can be named."""
        with self._lock:
            for key in [key for key in self._names if key[0] == ns]:
                del self._names[key]
            self._names.update({(ns, index): name for index, name in names.items()})

    def _count(self, ns: NsName) -> None:
        key = (ns, False)
        self._counts[key] = self._counts.get(key, 0) + 1


def _listen(link: socket.socket, *groups: int) -> None:
    link.setblocking(False)
    # Without an address of its own it would be taken for the kernel, which is told nothing.
    link.bind((0, 0))
    link.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    link.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
    for group in groups:
        link.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)


def _leave_out_what_is_quiet(link: socket.socket) -> None:
    """Have the kernel drop what would be passed over: of 200 gates that are prolonged 500 messages
    a second, each of which wakes a thread up. All messages of a packet are of one transaction.
    """
    kind, sender = 4, 12  # struct nlmsghdr of linux/netlink.h
    program = (
        _step(_LOAD_HALF, kind),
        _step(_IF_EQUAL, _loaded("=H", _NEW_GENERATION), then=5),
        _step(_IF_EQUAL, _loaded("=H", _NEW_ELEMENT), then=1),
        _step(_IF_EQUAL, _loaded("=H", _DELETE_ELEMENT), then=0, otherwise=2),
        _step(_LOAD_WORD, sender),
        _step(_IF_EQUAL, _loaded("=I", QUIET), then=1),
        _step(_RETURN, 0xFFFFFFFF),
        _step(_RETURN, 0),
    )
    steps = ctypes.create_string_buffer(b"".join(program))
    whole = struct.pack("@HP", len(program), ctypes.addressof(steps))
    link.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, whole)


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _loaded(form: str, number: int) -> int:
    """As the filter loads it: always the first byte first."""
    return int.from_bytes(struct.pack(form, number), "big")


def _ensure_nsid(descriptor: int) -> int:
    """The number of a namespace in the host's, given to it if it has none."""
    with _open() as link:
        number = read_nsid(link, descriptor)
        while number is None:
            asked = pack_attribute(_NSID_FD, struct.pack("=I", descriptor))
            any_number = pack_attribute(_NSID, _NUMBER.pack(-1))
            ask(link, _NEW_NSID, ACK, bytes(4) + asked + any_number)
            number = read_nsid(link, descriptor)
        return number


def _index(value: bytes | None) -> int:
    return 0 if value is None else int(_NUMBER.unpack(value)[0])
