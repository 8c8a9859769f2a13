"""Who judges at a link's clsact hook, and in which order; and a place of our own there.

Everything here is about a link of the calling thread's namespace. Reading and removing goes by
rtnetlink, since libbpf can only ask about a filter whose handle it knows.
"""

from __future__ import annotations

import errno
import struct
import sys
from typing import NamedTuple

from chainctl.errors import MendHost
from chainctl.net import libbpf
from chainctl.net.libbpf import EGRESS, INGRESS
from chainctl.net.libbpf_abi import BpfError
from chainctl.net.netlink import ACK, DUMP, ask, open_netlink, pack_attribute, parse_attributes

HANDLE = 0xC4A1
"""Ours. Other tools take 1, so that theirs and ours never replace each other."""
PRIORITY = 1

_PARENT = {INGRESS: 0xFFFFFFF2, EGRESS: 0xFFFFFFF3}
_RTM_DELTFILTER, _RTM_GETTFILTER = 45, 46
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FLAGS, _TCA_BPF_ID = 8, 11
_TCMSG = struct.Struct("=B3xiIII")


class Filter(NamedTuple):
    """A filter as it stands. `program` is None unless it is a BPF program whose answer counts."""

    priority: int
    protocol: int
    handle: int
    kind: str
    program: int | None

    @property
    def is_ours(self) -> bool:
        return (self.priority, self.handle, self.kind) == (PRIORITY, HANDLE, "bpf")

    def __str__(self) -> str:
        return f"{self.kind} filter, priority {self.priority}, handle {self.handle:#x}"


def attach(ifindex: int, where: int, program: int) -> None:
    """Put the program in our place, creating the hook when there is none. Twice is fine.

    A replacement is atomic: no packet meets neither program.
    """
    try:
        libbpf.ensure_clsact(ifindex)
        libbpf.attach(ifindex, where, program, HANDLE, PRIORITY)
    except BpfError as error:
        raise BpfError(
            f"attaching to link {ifindex}",
            error.errno,
            code="C323",
            hint="another program's filter may hold priority 1 there: tc filter show",
        ) from error


def detach(ifindex: int, where: int) -> None:
    """Take our program away. The hook stays: it may not be ours alone."""
    try:
        libbpf.detach(ifindex, where, HANDLE, PRIORITY)
    except BpfError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def read_filters(ifindex: int, where: int) -> list[Filter]:
    """The filters in the order in which they judge; none when there is no hook or no link."""
    replies = _ask(_RTM_GETTFILTER, DUMP, _tcmsg(ifindex, 0, where, 0))
    return [one for one in map(_parse_filter, replies) if one.handle]


def before_ours(ifindex: int, where: int) -> list[str]:
    """What judges before our program, in words; everything when ours is not there."""
    strangers = [f"tcx program {number}" for number in libbpf.tcx_programs(ifindex, where)]
    for one in read_filters(ifindex, where):
        if one.is_ours:
            break
        strangers.append(str(one))
    return strangers


def our_program(ifindex: int, where: int) -> int | None:
    """The id of the program in our place."""
    ours = [one.program for one in read_filters(ifindex, where) if one.is_ours]
    return ours[0] if ours else None


def remove_others(ifindex: int, where: int) -> None:
    """Remove every clsact filter but ours. TCX programs stay: only their owner can detach them."""
    for one in read_filters(ifindex, where):
        if not one.is_ours:
            message = _tcmsg(ifindex, one.handle, where, one.priority << 16 | one.protocol)
            kind = pack_attribute(_TCA_KIND, one.kind.encode() + b"\0")
            _ask(_RTM_DELTFILTER, ACK, message + kind)


def _tcmsg(ifindex: int, handle: int, where: int, info: int) -> bytes:
    return _TCMSG.pack(0, ifindex, handle, _PARENT[where], info)


def _ask(kind: int, flags: int, message: bytes) -> list[bytes]:
    """No link and no filter are answers like others: there is nothing."""
    try:
        with open_netlink() as link:
            return ask(link, kind, flags, message)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            return []
        raise MendHost("C326", f"rtnetlink: {error.strerror}") from error


def _parse_filter(message: bytes) -> Filter:
    _, _, handle, _, info = _TCMSG.unpack_from(message)
    attributes = parse_attributes(message, _TCMSG.size)
    options = parse_attributes(attributes.get(_TCA_OPTIONS, b""))
    flags = int.from_bytes(options.get(_TCA_BPF_FLAGS, b""), sys.byteorder)
    number = int.from_bytes(options.get(_TCA_BPF_ID, b""), sys.byteorder)
    kind = attributes.get(_TCA_KIND, b"").rstrip(b"\0").decode()
    return Filter(info >> 16, info & 0xFFFF, handle, kind, number if flags & 1 and number else None)
