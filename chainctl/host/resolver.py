"""The one door to name look-ups: the machine's own resolver, in the clear.

Called when a chain is brought up for the first time, before anything of it exists.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

from chainctl.errors import LookAgain


def lookup_ipv4(name: str) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses of `name` in the resolver's order; empty when it has none.

    Takes as long as the machine's resolver does (resolv.conf(5), by default 5 s a try).
    Raises LookAgain C220 when no resolver answers.
    """
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_DGRAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise LookAgain(
                "C220", f"no resolver answered for {name}", hint="is this machine online?"
            ) from None
        return ()
    except UnicodeError:
        return ()
    return tuple(dict.fromkeys(IPv4Address(entry[4][0]) for entry in found))
