"""Path MTU from sizes, against a WireGuard that pads as the real one does, and OpenVPN."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.chain import Tunnel
from chainctl.model.parts import TCP, UDP
from chainctl.supervisor.path_mtu import LIKELY, judge_sizes, sizes_to_try
from tests.unit.supervisor.chains import make_tunnel

WIREGUARD = make_tunnel(0, 1)
OPENVPN = [make_tunnel(0, 1, via=protocol) for protocol in (UDP, TCP)]


def passes(tunnel: Tunnel, size: int, tunnel_mtu: int, path_mtu: int) -> bool:
    """Whether a packet of `size` bytes comes through: calculate_skb_padding, in short."""
    block = 16 if tunnel is WIREGUARD else 1
    return min(tunnel_mtu, -(-size // block) * block) + tunnel.overhead <= path_mtu


def find(tunnel: Tunnel, path_mtu: int, assumed: int) -> tuple[int, int]:
    """(what comes out, how many tunnels had to be made for it)."""
    for rounds in range(1, 10):
        tunnel_mtu = assumed - tunnel.overhead
        sizes = sizes_to_try(tunnel, tunnel_mtu)
        passed = {s for s in sizes if passes(tunnel, s, tunnel_mtu, path_mtu)}
        smaller = judge_sizes(tunnel, tunnel_mtu, passed)
        if smaller is None:
            return assumed, rounds
        assert smaller < assumed
        assumed = smaller
    raise AssertionError("no end")


TUNNELS = pytest.mark.parametrize("tunnel", [WIREGUARD, *OPENVPN], ids=["wg", "udp", "tcp"])


@TUNNELS
def test_an_uplink_that_is_as_wide_as_it_says_takes_one_round(tunnel: Tunnel) -> None:
    assert find(tunnel, 1500, 1500) == (1500, 1)


@TUNNELS
def test_pppoe_behind_a_modem_is_found_exactly(tunnel: Tunnel) -> None:
    assert find(tunnel, 1492, 1500) == (1492, 2)


@TUNNELS
def test_every_likely_path_is_found_exactly(tunnel: Tunnel) -> None:
    assert {path: find(tunnel, path, 1500)[0] for path in LIKELY} == {path: path for path in LIKELY}


@given(st.sampled_from([WIREGUARD, *OPENVPN]), st.integers(576, 1500), st.integers(576, 9000))
def test_what_is_found_passes_and_less_than_a_step_is_lost(
    tunnel: Tunnel, path_mtu: int, assumed: int
) -> None:
    found, rounds = find(tunnel, path_mtu, assumed)
    assert found <= max(path_mtu, 575 + 16)
    next_likely = min((p for p in LIKELY if p > found), default=assumed)
    assert found == assumed or path_mtu < next_likely
    assert rounds <= 4


def test_sizes_are_tried_from_the_largest() -> None:
    sizes = sizes_to_try(WIREGUARD, 1440)
    assert sizes[0] == 1440
    assert list(sizes) == sorted(sizes, reverse=True)


def test_silence_says_nothing_about_sizes() -> None:
    assert judge_sizes(WIREGUARD, 1440, ()) is None
