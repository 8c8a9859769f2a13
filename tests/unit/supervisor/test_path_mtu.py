"""Path MTU from sizes, against a WireGuard that pads as the real one does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chainctl.supervisor.path_mtu import LIKELY, judge_sizes, sizes_to_try


def passes(size: int, tunnel_mtu: int, path_mtu: int) -> bool:
    """Whether a packet of `size` bytes comes through: calculate_skb_padding, in short."""
    return min(tunnel_mtu, -(-size // 16) * 16) + 60 <= path_mtu


def find(path_mtu: int, assumed: int) -> tuple[int, int]:
    """(what comes out, how many tunnels had to be made for it)."""
    for rounds in range(1, 10):
        tunnel_mtu = assumed - 60
        sizes = sizes_to_try(tunnel_mtu)
        smaller = judge_sizes(tunnel_mtu, {s for s in sizes if passes(s, tunnel_mtu, path_mtu)})
        if smaller is None:
            return assumed, rounds
        assert smaller < assumed
        assumed = smaller
    raise AssertionError("no end")


def test_an_uplink_that_is_as_wide_as_it_says_takes_one_round() -> None:
    assert find(1500, 1500) == (1500, 1)


def test_pppoe_behind_a_modem_is_found_exactly() -> None:
    assert find(1492, 1500) == (1492, 2)


def test_every_likely_path_is_found_exactly() -> None:
    assert {path: find(path, 1500)[0] for path in LIKELY} == {path: path for path in LIKELY}


@given(st.integers(576, 1500), st.integers(576, 9000))
def test_what_is_found_passes_and_less_than_a_step_is_lost(path_mtu: int, assumed: int) -> None:
    found, rounds = find(path_mtu, assumed)
    assert found <= max(path_mtu, 575 + 16)
    next_likely = min((p for p in LIKELY if p > found), default=assumed)
    assert found == assumed or path_mtu < next_likely
    assert rounds <= 4


def test_sizes_are_tried_from_the_largest() -> None:
    sizes = sizes_to_try(1440)
    assert sizes[0] == 1440
    assert list(sizes) == sorted(sizes, reverse=True)


def test_silence_says_nothing_about_sizes() -> None:
    assert judge_sizes(1440, ()) is None
