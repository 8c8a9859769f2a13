"""The path MTU to the first server, from which packet sizes come through its tunnel. Pure.

WireGuard pads what it encrypts to a multiple of 16 bytes, though never beyond its device's
MTU (drivers/net/wireguard/send.c, calculate_skb_padding). Through a device of 1440 bytes the
outer packets are therefore 60 + 16 k or 1500 bytes long, and nothing in between can be tried:
a path of 1492 bytes shows as "1484 passes, 1500 does not". The likely value in between is
taken on trust, and measured again once the device has the MTU that goes with it.
"""

from __future__ import annotations

from collections.abc import Collection

from chainctl.model.chain import Engine, Tunnel

LIKELY = (1500, 1492, 1480, 1472, 1460, 1440, 1420, 1400, 1380, 1360, 1320, 1280, 1200, 1000, 576)
"""Bytes; 1492 is PPPoE (RFC 2516), 1480 and 1472 are tunnels below it, 1280 is IPv6's least."""

_BLOCK = 16


def sizes_to_try(tunnel: Tunnel, tunnel_mtu: int) -> tuple[int, ...]:
    """Packet sizes inside the tunnel, largest first: servers limit how many errors they send."""
    fits = [path_mtu - tunnel.overhead for path_mtu in LIKELY]
    block = _block(tunnel)
    blocks = {size - size % block for size in (tunnel_mtu, *fits) if size <= tunnel_mtu}
    return tuple(sorted({tunnel_mtu, *blocks}, reverse=True))


def judge_sizes(tunnel: Tunnel, tunnel_mtu: int, answered: Collection[int]) -> int | None:
    """The path MTU in bytes, if it is less than the tunnel was made for; None if it is not.

    A value that was not itself tried needs another measurement, with a tunnel made for it.
    """
    largest = max(answered, default=tunnel_mtu)
    if largest >= tunnel_mtu:
        return None
    passed = largest + tunnel.overhead
    made_for = tunnel_mtu + tunnel.overhead
    unsure = range(passed + 1, min(passed + _block(tunnel), made_for))
    return max([passed, *(path_mtu for path_mtu in LIKELY if path_mtu in unsure)])


def _block(tunnel: Tunnel) -> int:
    """OpenVPN does not pad."""
    return 1 if tunnel.engine is Engine.OPENVPN else _BLOCK
