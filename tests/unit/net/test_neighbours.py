"""The frames sent to the LAN and those understood from it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from chainctl.net.neighbours import (
    arp_probe,
    parse_advertisement,
    parse_arp_sender,
    router_solicitation,
)

MAC = bytes.fromhex("020000000001")
ADDRESS = IPv4Address("192.168.10.254")

ADVERTISEMENT = bytes.fromhex(
    "333300000001 020000000099 86dd"
    "60000000 0030 3a ff fe800000000000000000000000000001 ff020000000000000000000000000001"
    "8600 39c7 40 00 0708 00000000 00000000"  # lifetime 1800 s
    "0304 40 c0 00015180 00003840 00000000 20010db8000100000000000000000000"
)
"""From fe80::1 with the prefix 2001:db8:1::/64; a kernel that gets it makes a default route."""

REPLY = bytes.fromhex(
    "020000000001 020000000077 0806 0001 0800 06 04 0002020000000077 c0a80afe 020000000001 00000000"
)


def test_an_advertisement_is_understood() -> None:
    router = parse_advertisement(ADVERTISEMENT)
    assert router is not None
    assert router.address == IPv6Address("fe80::1")
    assert router.mac == "02:00:00:00:00:99"
    assert router.lifetime == 1800
    assert router.prefixes == (IPv6Network("2001:db8:1::/64"),)


def test_every_changed_byte_that_matters_is_noticed() -> None:
    """Ethernet type, next header, hop limit, addresses and the whole message are covered."""
    covered = [*range(12, 14), 20, 21, *range(22, len(ADVERTISEMENT))]
    for index in covered:
        changed = bytearray(ADVERTISEMENT)
        changed[index] ^= 0x11
        assert parse_advertisement(bytes(changed)) is None, index


def test_a_frame_cut_anywhere_is_refused() -> None:
    for length in range(len(ADVERTISEMENT)):
        assert parse_advertisement(ADVERTISEMENT[:length]) is None, length


def test_an_option_without_length_ends_the_reading() -> None:
    frame = bytearray(ADVERTISEMENT)
    frame[71] = 0
    frame[56:58] = (0x39C7 + 4).to_bytes(2)
    router = parse_advertisement(bytes(frame))
    assert router is not None
    assert router.prefixes == ()


def test_the_solicitation_byte_for_byte() -> None:
    assert router_solicitation(MAC) == bytes.fromhex(
        "333300000002 020000000001 86dd"
        "60000000 0008 3a ff 00000000000000000000000000000000 ff020000000000000000000000000002"
        "8500 7bb8 00000000"
    )


def test_the_arp_probe_byte_for_byte() -> None:
    assert arp_probe(MAC, ADDRESS) == bytes.fromhex(
        "ffffffffffff 020000000001 0806 0001 0800 06 04 0001"
        "020000000001 00000000 000000000000 c0a80afe"
    )


def test_who_claims_the_address() -> None:
    assert parse_arp_sender(REPLY, ADDRESS) == "02:00:00:00:00:77"
    assert parse_arp_sender(REPLY, IPv4Address("192.168.10.253")) is None
    assert parse_arp_sender(REPLY[:41], ADDRESS) is None
    assert parse_arp_sender(arp_probe(MAC, ADDRESS), ADDRESS) is None


@given(st.binary(max_size=200))
def test_nothing_that_comes_in_raises(noise: bytes) -> None:
    for prefix in (b"", ADVERTISEMENT[:54], ADVERTISEMENT[:70], REPLY[:20]):
        parse_advertisement(prefix + noise)
        parse_arp_sender(prefix + noise, ADDRESS)
