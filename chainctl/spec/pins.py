"""Names of servers, looked up once and then kept.

A name is never looked up in the clear while a chain runs, and never changes its address
unasked: whoever answers for the name could otherwise move a chain to another server. The
caller keeps the pins (name to address) and shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from chainctl.spec.model import HopSpec, ServerProfile
from chainctl.spec.schema import refuse_special

Lookup = Callable[[str], Sequence[IPv4Address]]
"""A name's addresses, best first; empty when there are none (`chainctl.host.resolver`)."""


@dataclass(frozen=True)
class Pinned:
    pins: Mapping[str, IPv4Address]
    """Old and new ones; names that no profile uses any more are left out."""
    fresh: tuple[str, ...]
    """Looked up just now."""
    unresolved: tuple[str, ...]
    """Without a pin, because the look-up gave no address a server can have."""


def resolve_endpoints(
    profiles: Iterable[ServerProfile], pins: Mapping[str, IPv4Address], lookup: Lookup
) -> Pinned:
    """Look up the names among the endpoints of `profiles` that have no pin, each once."""
    names = dict.fromkeys(
        profile.endpoint.host for profile in profiles if isinstance(profile.endpoint.host, str)
    )
    found = {name: pins.get(name) or _first_usable(lookup(name)) for name in names}
    return Pinned(
        pins={name: address for name, address in found.items() if address},
        fresh=tuple(name for name, address in found.items() if address and name not in pins),
        unresolved=tuple(name for name, address in found.items() if not address),
    )


def address_of(profile: ServerProfile, pins: Mapping[str, IPv4Address]) -> IPv4Address | None:
    """The server's address; None when its name has no pin."""
    host = profile.endpoint.host
    return host if isinstance(host, IPv4Address) else pins.get(host)


def usable(
    hop: HopSpec, pins: Mapping[str, IPv4Address]
) -> tuple[tuple[ServerProfile, IPv4Address], ...]:
    """The hop's servers that have an address, in the order of its pool."""
    pairs = ((profile, address_of(profile, pins)) for profile in hop.pool)
    return tuple((profile, address) for profile, address in pairs if address)


def _first_usable(addresses: Sequence[IPv4Address]) -> IPv4Address | None:
    for address in addresses:
        try:
            refuse_special(address)
        except ValueError:
            continue  # Blocking resolvers answer 0.0.0.0 or 127.0.0.1.
        return address
    return None
