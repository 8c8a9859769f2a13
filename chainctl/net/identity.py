"""`bpf/identity.h` in Python: the layouts of keys and values, and the numbers. All pure.

Each `struct.Struct` has one letter for each field of the C struct of the same name, in its
order; a test compares them with the object's BTF.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address
from struct import Struct
from typing import NamedTuple

U32 = Struct("=I")
U64 = Struct("=Q")
CLASS = Struct("=H")
PORT = Struct("=IIIIII")
WIRE_KEY = Struct("=IIIHHBBH")
WIRE = Struct("=II")
ENDPOINT_KEY = Struct("=II")
CIDR_KEY = Struct("=II4s")
POLICY_KEY = Struct("=IIIHBB")
POLICY_RULE = Struct("=IBBBB")
FLOW_KEY = Struct("=IIHHBBH")
VERDICT = Struct("=QIIIIIIHHBBH")

UNKNOWN = 0
HOST = 1
WORLD = 2
CIDR_IDENTITY = 1 << 24

WIRE_FRAGMENTS = 1
COVERS_CLASSES, COVERS_PROTOCOLS = 1, 2
SCOPE_BITS = 32
"""A prefix length in `cidr_map` counts the scope's bits too."""


class Reason(IntEnum):
    """Why a packet passed or was dropped; `bpf/identity.h` says what each one means."""

    UNDECIDED = 0
    EVENT_LOST = 1
    PASS_WIRE = 2
    PASS_FRAGMENT = 3
    PASS_NEW = 4
    PASS_KNOWN = 5
    PASS_REPLY = 6
    PASS_ICMP_ERROR = 7
    PASS_AUDITED = 8
    DROP_SHORT = 16
    DROP_VLAN = 17
    DROP_NOT_IPV4 = 18
    DROP_OPTIONS = 19
    DROP_NO_PORT = 20
    DROP_NO_FAR_END = 21
    DROP_TOO_LONG = 22
    DROP_SPOOFED = 23
    DROP_FRAGMENT = 24
    DROP_NO_WIRE = 25
    DROP_GATE = 26
    DROP_SOURCE = 27
    DROP_DESTINATION = 28
    DROP_NO_RULE = 29
    DROP_RULE = 30
    DROP_NO_FLOW = 31
    DROP_ICMP = 32
    DROP_QUOTE = 33

    @property
    def passes(self) -> bool:
        return Reason.PASS_WIRE <= self < Reason.DROP_SHORT


class Verdict(NamedTuple):
    """One record of the ring: a drop, or the first packet of a client's flow."""

    when: int
    port: int
    source: IPv4Address
    destination: IPv4Address
    source_identity: int
    destination_identity: int
    rule: int
    source_port: int
    destination_port: int
    protocol: int
    reason: Reason
    length: int

    @classmethod
    def parse(cls, record: bytes) -> Verdict:
        raw = cls(*VERDICT.unpack(record))
        return raw._replace(
            source=IPv4Address(raw.source),
            destination=IPv4Address(raw.destination),
            reason=Reason(raw.reason),
        )
