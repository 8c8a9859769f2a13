"""What is taken of a server's push reply, and what never is."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.pushed import Pushed, PushReply, objection, parse_push

USUAL = (
    "PUSH_REPLY,redirect-gateway def1 bypass-dhcp,dhcp-option DNS 10.8.0.1,dhcp-option DNS"
    " 9.9.9.9,route-gateway 10.8.0.1,topology subnet,ping 10,ping-restart 60,"
    "ifconfig 10.8.0.2 255.255.255.0,peer-id 3,cipher AES-256-GCM"
)


def test_a_usual_reply() -> None:
    assert parse_push(USUAL) == PushReply(
        IPv4Address("10.8.0.2"),
        IPv4Address("10.8.0.1"),
        ("redirect-gateway", "dhcp-option"),
    )


def test_the_way_of_2_7_to_say_a_resolver() -> None:
    reply = parse_push("PUSH_REPLY,dns server 1 address 10.9.0.1:53 10.9.0.2,ifconfig 10.9.0.5 x")
    assert reply == PushReply(IPv4Address("10.9.0.5"), IPv4Address("10.9.0.2"), ("dns",))


def test_a_reply_in_two_messages() -> None:
    first = parse_push("PUSH_REPLY,route 1.2.3.0 255.255.255.0,push-continuation 2")
    second = parse_push("PUSH_REPLY,ifconfig 10.8.0.2 255.255.255.0,push-continuation 1")
    assert first
    assert second
    assert first.joined(second) == PushReply(IPv4Address("10.8.0.2"), None, ("route",))


@pytest.mark.parametrize(
    "option",
    [
        "ifconfig",
        "ifconfig $(reboot) 255.255.255.0",
        "ifconfig 10.8.0.2.5 255.255.255.0",
        "ifconfig ::1 ::2",
        "dhcp-option DNS `id`",
        "dhcp-option DOMAIN $(touch${IFS}pwn)",
        "dns server 0 address",
    ],
)
def test_what_is_no_address_is_not_there(option: str) -> None:
    reply = parse_push(f"PUSH_REPLY,{option}")
    assert reply
    assert (reply.address, reply.resolver) == (None, None)


@given(st.text())
def test_a_server_writes_what_it_likes(text: str) -> None:
    assert parse_push(text) is None or text.split(",")[0] == "PUSH_REPLY"
    reply = parse_push(f"PUSH_REPLY,{text}")
    assert reply is not None
    assert all(name.isascii() and name.islower() and len(name) <= 32 for name in reply.ignored)


ELSEWHERE = [(IPv4Network("192.168.10.0/24"), "the LAN"), (IPv4Network("198.19.0.0/16"), "wires")]


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "169.254.3.4", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("192.168.10.7", "198.19.0.3"),
    ],
)
def test_addresses_a_tunnel_cannot_have(address: str) -> None:
    assert objection(IPv4Address(address), ELSEWHERE)


@pytest.mark.parametrize("address", ["10.8.0.2", "100.64.1.2", "172.16.0.9", "8.8.4.4"])
def test_addresses_a_tunnel_can_have(address: str) -> None:
    assert objection(IPv4Address(address), ELSEWHERE) is None


@given(st.ip_addresses(v=4), st.none() | st.ip_addresses(v=4))
def test_it_is_remembered_as_it_was(address: IPv4Address, resolver: IPv4Address | None) -> None:
    pushed = Pushed("se-sto-01", address, resolver)
    assert Pushed.from_json(pushed.to_json()) == pushed
