"""How often the nft tables of a namespace were changed, as the kernel counts it.

Every transaction of anybody adds one (nf_tables_commit in net/netfilter/nf_tables_api.c), so the
same number means the same tables. To ask costs 40 µs, to list a table a few milliseconds.
"""

from __future__ import annotations

import struct
from contextlib import closing

from chainctl.net.netlink import NETFILTER, NFTABLES, ask, open_netlink, parse_attributes

_GET_GENERATION = NFTABLES << 8 | 16
_HEAD = struct.pack(">BBH", 0, 0, 0)
_ID = 1
"""NFTA_GEN_ID of linux/netfilter/nf_tables.h."""


def read_generation() -> int | None:
    """Of the calling thread's namespace; None when the kernel does not say."""
    try:
        with closing(open_netlink(NETFILTER)) as link:
            (answer,) = ask(link, _GET_GENERATION, 0, _HEAD)
    except (OSError, ValueError):
        return None
    number = parse_attributes(answer, len(_HEAD)).get(_ID)
    return struct.unpack(">I", number)[0] if number else None
