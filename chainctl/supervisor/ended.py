"""An OpenVPN client that ended: where its successor begins. Pure.

A server tells no client an address within 30 s of the last time it told one to the same port
(OpenVPN's push.c, `sent_push_reply_expiry`). So one over UDP that is started anew in its place
within that time has to wait until it is over; from the port of the hop's other tunnel it is
another client to the server. Later the same port is better: the server goes on with the session it
has and gives the same address, so that connections survive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from typing import TypeAlias

from chainctl.model.chain import Chain, Engine, Hop, Slot
from chainctl.model.parts import UDP, Client, TunnelConfig
from chainctl.supervisor.plan import Change, Make, Remove, Step

Line: TypeAlias = tuple[IPv4Address, int]
"""A server's address, and the port a client of ours sends from."""

_NO_OTHER_REPLY = 31.0
"""Seconds; the server counts whole ones."""


def begins_elsewhere(
    chain: Chain, steps: Sequence[Step], connected: Mapping[Line, float], now: float
) -> Hop | None:
    """The outermost hop whose client cannot begin anew in its place, where `steps` mend nothing
    but clients that ended.

    `connected`: since when each was connected, in seconds since 1970 as is `now`.
    """
    clients = {chain.client_name(hop, hop.tunnel.slot): hop for hop in chain.hops}
    mended = {_client_of(step) for step in steps}
    if not mended <= clients.keys():
        return None
    for name, hop in clients.items():
        by_openvpn = hop.tunnel.engine is Engine.OPENVPN and hop.tunnel.protocol == UDP
        if name in mended and by_openvpn:
            # One whose time nobody knows may have begun just now.
            line = line_of(chain, hop, hop.tunnel.slot)
            if line not in connected or not is_free(line, connected, now):
                return hop
    return None


def is_free(line: Line, connected: Mapping[Line, float], now: float) -> bool:
    """A client that begins there is told an address at once."""
    return not 0 <= now - connected.get(line, -_NO_OTHER_REPLY) < _NO_OTHER_REPLY


def line_of(chain: Chain, hop: Hop, slot: Slot) -> Line:
    """Of a client of the hop's present server in that slot."""
    return hop.tunnel.endpoint, chain.source_port(hop, slot)


def _client_of(step: Step) -> str:
    """Whose process or configuration it makes or takes away; "" for any other step."""
    match step:
        case Make(part) | Remove(part) | Change(_, part):
            return part.name if isinstance(part, Client | TunnelConfig) else ""
        case _:
            return ""
