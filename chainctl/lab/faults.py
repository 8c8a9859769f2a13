"""What can be broken in a lab while a chain is up in it, and how it is mended."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from chainctl.errors import LookAgain
from chainctl.lab import namespaces, processes
from chainctl.lab.lab import Lab, Server

LOSS_PERCENT = 10.0
"""Of the packets, each way: no reason to change the server."""
DELAY_MS = 200.0
SMALL_MTU = 600
"""Bytes of a packet to or from the server that still pass."""

_GSO_MAX_SEGS = 65535
"""What a link is born with (linux/netdevice.h, GSO_MAX_SEGS)."""


class Kind(Enum):
    """The value is what a person calls it."""

    KILL_SERVER = "kill-server"
    FREEZE_SERVER = "freeze-server"
    CUT_SERVER = "cut-server"
    ONE_WAY = "one-way"
    LOSS = "loss"
    DELAY = "delay"
    MTU = "mtu"
    KILL_CLIENT = "kill-client"
    UPLINK_FLAP = "uplink-flap"

    @property
    def ends_service(self) -> bool:
        """Only another server helps."""
        return self in (Kind.KILL_SERVER, Kind.FREEZE_SERVER, Kind.CUT_SERVER, Kind.ONE_WAY)


@dataclass(frozen=True)
class Mark:
    """Whom a fault hits: a server, and the VPN client that speaks to it."""

    server: Server
    namespace: Path
    """Pin of the hop's network namespace."""
    link: str
    """The client's TUN device there."""


@contextmanager
def fault(lab: Lab, kind: Kind, mark: Mark) -> Iterator[float]:
    """Break it for the length of the block; yields since when, in seconds since 1970.

    Mending a client is the supervisor's business. Raises LookAgain C624 when the hop has no
    client as a process.
    """
    begun = time.time()
    try:
        if not _strike(kind, mark):
            _spoil(lab, kind, mark.server)
            begun = time.time()  # Programs are started for this; the fault begins at their end.
        yield begun
    finally:
        _mend(lab, kind, mark.server)


def _strike(kind: Kind, mark: Mark) -> bool:
    """The faults that a signal makes, and thus at once; False when it is none of them."""
    match kind:
        case Kind.KILL_SERVER:
            mark.server.kill()
        case Kind.FREEZE_SERVER:
            mark.server.freeze()
        case Kind.KILL_CLIENT:
            _kill_client(mark)
        case _:
            return False
    return True


def _spoil(lab: Lab, kind: Kind, server: Server) -> None:
    match kind:
        case Kind.CUT_SERVER:
            _cut(lab, server)
        case Kind.ONE_WAY:
            lab.set_one_way(server.name, True)
        case Kind.LOSS:
            lab.set_loss(server.name, LOSS_PERCENT)
        case Kind.DELAY:
            lab.set_delay(server.name, DELAY_MS)
        case Kind.MTU:
            _narrow(lab, server)
        case Kind.UPLINK_FLAP:
            lab.set_uplink(False)


def _mend(lab: Lab, kind: Kind, server: Server) -> None:
    match kind:
        case Kind.KILL_SERVER:
            server.restart()
        case Kind.FREEZE_SERVER:
            server.thaw()
        case Kind.CUT_SERVER:
            _splice(lab, server)
        case Kind.ONE_WAY:
            lab.set_one_way(server.name, False)
        case Kind.LOSS:
            lab.set_loss(server.name, 0.0)
        case Kind.DELAY:
            lab.set_delay(server.name, 0.0)
        case Kind.MTU:
            _widen(lab, server)
        case Kind.KILL_CLIENT:
            pass
        case Kind.UPLINK_FLAP:
            lab.set_uplink(True)


def _cut(lab: Lab, server: Server) -> None:
    """Nothing gets through the server's cable, in one transaction; routes stay."""
    namespace, link = _line_ends(lab, server)[0]
    chains = (
        f"chain {hook} {{ type filter hook {hook} device {link} priority 0; drop; }};"
        for hook in ("ingress", "egress")
    )
    namespaces.run_in(namespace, f"nft 'table netdev cut-{server.name} {{ {' '.join(chains)} }}'\n")


def _without_table(name: str) -> str:
    """Added first, so that deleting it fails only for a reason."""
    return f"nft 'add table netdev {name}; delete table netdev {name}'\n"


def _splice(lab: Lab, server: Server) -> None:
    namespace, _ = _line_ends(lab, server)[0]
    namespaces.run_in(namespace, _without_table(f"cut-{server.name}"))


def _narrow(lab: Lab, server: Server) -> None:
    """The line takes only small packets, and nobody says so."""
    for namespace, link in _line_ends(lab, server):
        rule = f"type filter hook ingress device {link} priority 0; ip length > {SMALL_MTU} drop;"
        table = f"table netdev narrow {{ chain in {{ {rule} }}; }}"
        # Unless packets come one by one, a bunch of small ones is a large one.
        script = f"ip link set {link} gso_max_segs 1\nnft '{table}'\n"
        namespaces.run_in(namespace, script)


def _widen(lab: Lab, server: Server) -> None:
    for namespace, link in _line_ends(lab, server):
        script = _without_table("narrow")
        if lab.layout.spec.offload:
            script += f"ip link set {link} gso_max_segs {_GSO_MAX_SEGS}\n"
        namespaces.run_in(namespace, script)


def _line_ends(lab: Lab, server: Server) -> tuple[tuple[str, str], tuple[str, str]]:
    """(namespace, link) of both ends of the server's cable."""
    return (lab.namespace("internet"), server.name), (lab.namespace(server.name), "eth0")


def _kill_client(mark: Mark) -> None:
    clients = [
        process
        for process in processes.all_in({mark.namespace.stat().st_ino})
        if processes.arguments_of(process.pid)[-1:] == [mark.link]
    ]
    if not clients:
        raise LookAgain("C624", f"no VPN client runs for {mark.link} of this hop")
    for process in clients:
        process.signal(signal.SIGKILL)
