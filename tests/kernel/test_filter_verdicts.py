"""What the filter says to a packet, and why: a table of (packet, maps) -> reason."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from chainctl.host.clock import boot_ns
from chainctl.model.parts import TCP, UDP, ClientPolicy, PortMode
from chainctl.net import libbpf
from chainctl.net.filter import WireRow
from chainctl.net.identity import CIDR_IDENTITY, WORLD, Reason
from chainctl.net.policy import RuleId, Trait
from tests.kernel.filter_rig import LINK, SCOPE, Rig, rig
from tests.kernel.packets import MORE, echo, frame, icmp_error, ipv4, tcp, udp

pytestmark = pytest.mark.root

LEG, SERVER = "198.19.0.2", "192.0.2.10"
CLIENT, OTHER, WEB, RESOLVER = "192.168.1.5", "192.168.1.6", "198.51.100.9", "10.8.0.1"
SECOND = 10**9
POLICY = ClientPolicy(
    SCOPE,
    clients=(IPv4Network("192.168.1.0/24"),),
    refused=(IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16")),
    dns=(IPv4Address(RESOLVER),),
)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path / "bpf") as one:
        yield one


@pytest.fixture
def wire(port: Rig) -> Rig:
    """A hop's port: udp from its leg to its server, 40001 -> 51820."""
    port.be(PortMode.TUPLE, address=LEG, far_mtu=1440)
    port.panel.put_wires([_row()])
    return port


@pytest.fixture
def client(port: Rig) -> Rig:
    port.panel.put_policy(POLICY)
    port.be(PortMode.CLIENT)
    return port


def _row(**changes: object) -> WireRow:
    row = WireRow(LINK, IPv4Address(LEG), 40001, IPv4Address(SERVER), 51820, UDP)
    return row._replace(**changes)  # type: ignore[arg-type]


def _out(payload: bytes = b"", **more: object) -> bytes:
    return frame(ipv4(LEG, SERVER, UDP, udp(40001, 51820, payload), **more))  # type: ignore[arg-type]


def _ask(payload: bytes = b"", *, to: str = WEB, port: int = 443, **more: object) -> bytes:
    return frame(ipv4(CLIENT, to, UDP, udp(5000, port, payload), **more))  # type: ignore[arg-type]


def _answer(payload: bytes = b"", *, to: str = CLIENT, **more: object) -> bytes:
    return frame(ipv4(WEB, to, UDP, udp(443, 5000, payload), **more))  # type: ignore[arg-type]


NEVER_ON_ANY_PORT = {
    "IPv6": (frame(b"\x60" + bytes(59), 0x86DD), Reason.DROP_NOT_IPV4),
    "ARP": (frame(b"\0\1\x08\0\6\4\0\1" + bytes(40), 0x0806), Reason.DROP_NOT_IPV4),
    "LLDP": (frame(bytes(60), 0x88CC), Reason.DROP_NOT_IPV4),
    "VLAN": (
        frame(b"\0\1\x08\0" + ipv4(LEG, SERVER, UDP, udp(40001, 51820)), 0x8100),
        Reason.DROP_VLAN,
    ),
    "stacked VLAN": (frame(bytes(60), 0x88A8), Reason.DROP_VLAN),
    "options": (_out(options=b"\x07\x04\0\0"), Reason.DROP_OPTIONS),
    "header of 16 bytes": (frame(b"\x44" + bytes(59)), Reason.DROP_OPTIONS),
    "version 6 in an IPv4 frame": (_out(version=6), Reason.DROP_NOT_IPV4),
    "longer than it is": (_out(total=29), Reason.DROP_SHORT),
    "total length within the header": (_out(total=19), Reason.DROP_SHORT),
}


@pytest.mark.parametrize(
    ("data", "reason"), NEVER_ON_ANY_PORT.values(), ids=NEVER_ON_ANY_PORT.keys()
)
@pytest.mark.parametrize("mode", PortMode)
def test_only_plain_ipv4_is_read(port: Rig, mode: PortMode, data: bytes, reason: Reason) -> None:
    port.panel.put_policy(POLICY)
    port.panel.put_wires([_row()])
    port.be(mode)
    assert port.judge(data) == reason


ON_A_WIRE = {
    "its tuple": (_out(b"x" * 100), Reason.PASS_WIRE),
    "spoofed": (frame(ipv4(OTHER, SERVER, UDP, udp(40001, 51820))), Reason.DROP_SPOOFED),
    "source port": (frame(ipv4(LEG, SERVER, UDP, udp(40002, 51820))), Reason.DROP_NO_WIRE),
    "destination port": (frame(ipv4(LEG, SERVER, UDP, udp(40001, 51821))), Reason.DROP_NO_WIRE),
    "destination": (frame(ipv4(LEG, WEB, UDP, udp(40001, 51820))), Reason.DROP_NO_WIRE),
    "protocol": (frame(ipv4(LEG, SERVER, TCP, tcp(40001, 51820))), Reason.DROP_NO_WIRE),
    "ESP": (frame(ipv4(LEG, SERVER, 50, bytes(40))), Reason.DROP_NO_WIRE),
    "echo": (frame(ipv4(LEG, SERVER, 1, echo(40001))), Reason.DROP_NO_WIRE),
    "frag-needed": (
        frame(ipv4(LEG, SERVER, 1, icmp_error(ipv4(SERVER, LEG, UDP, udp(51820, 40001))))),
        Reason.DROP_NO_WIRE,
    ),
    "first fragment": (_out(b"x" * 64, fragment=MORE), Reason.DROP_FRAGMENT),
    "later fragment": (_out(b"x" * 64, fragment=9), Reason.DROP_FRAGMENT),
    "as long as the far leg": (_out(b"x" * (1440 - 28)), Reason.PASS_WIRE),
    "longer": (_out(b"x" * (1440 - 27)), Reason.DROP_TOO_LONG),
}


@pytest.mark.parametrize(("data", "reason"), ON_A_WIRE.values(), ids=ON_A_WIRE.keys())
def test_a_wire_carries_its_tuple(wire: Rig, data: bytes, reason: Reason) -> None:
    assert wire.judge(data) == reason


def test_what_is_not_whole_carries_nothing(wire: Rig) -> None:
    wire.panel.remove_wires([_row()])
    assert wire.judge(_out()) == Reason.DROP_NO_WIRE
    wire.panel.put_wires([_row()])
    wire.panel.remove_far(LINK)
    assert wire.judge(_out()) == Reason.DROP_NO_FAR_END
    wire.panel.put_far(LINK, LINK)
    wire.panel.remove_port(LINK)
    assert wire.judge(_out()) == Reason.DROP_NO_PORT


def test_an_aggregate_is_as_long_as_its_pieces(wire: Rig) -> None:
    """What is still one piece here (GSO) is cut before a real wire."""
    whole = _out(b"x" * 3000)
    assert wire.judge(whole) == Reason.DROP_TOO_LONG
    assert wire.judge(whole, gso_size=1440 - 28) == Reason.PASS_WIRE
    assert wire.judge(whole, gso_size=1440 - 27) == Reason.DROP_TOO_LONG


def test_a_tcp_aggregate_counts_its_options(port: Rig) -> None:
    port.be(PortMode.TUPLE, far_mtu=1440)
    port.panel.put_wires([_row(protocol=TCP)])
    whole = frame(ipv4(LEG, SERVER, TCP, tcp(40001, 51820, b"x" * 3000, words=8)))
    assert port.judge(whole, gso_size=1440 - 52) == Reason.PASS_WIRE
    assert port.judge(whole, gso_size=1440 - 51) == Reason.DROP_TOO_LONG


def test_fragments_pass_where_a_row_says_so(wire: Rig) -> None:
    wire.panel.put_wires([_row(fragments=True)])
    assert wire.judge(_out(b"x" * 64, fragment=MORE)) == Reason.PASS_WIRE
    assert wire.judge(_out(b"x" * 64, fragment=9)) == Reason.PASS_FRAGMENT
    elsewhere = frame(ipv4(LEG, WEB, UDP, b"x" * 64, fragment=9))
    assert wire.judge(elsewhere) == Reason.DROP_FRAGMENT
    first_of_another = frame(ipv4(LEG, SERVER, UDP, udp(40002, 51820), fragment=MORE))
    assert wire.judge(first_of_another) == Reason.DROP_NO_WIRE

    another = _row(source_port=40002, fragments=True)
    wire.panel.put_wires([another])
    wire.panel.remove_wires([another])
    assert wire.judge(_out(b"x" * 64, fragment=9)) == Reason.PASS_FRAGMENT
    wire.panel.put_wires([_row()])
    assert wire.judge(_out(b"x" * 64, fragment=9)) == Reason.DROP_FRAGMENT


@pytest.mark.parametrize(
    ("packet", "header"),
    [
        (ipv4(CLIENT, WEB, UDP, udp(5000, 443, b"data")), 28),
        (ipv4(CLIENT, WEB, TCP, tcp(5000, 443, b"data")), 40),
        (ipv4(CLIENT, WEB, 1, echo(9, data=b"data")), 28),
    ],
    ids=["udp", "tcp", "icmp"],
)
def test_truncated_anywhere(client: Rig, packet: bytes, header: int) -> None:
    for size in range(20, len(packet)):  # the kernel runs no test with less
        assert client.judge(frame(packet[:size])) == Reason.DROP_SHORT, size
    for size in range(20, header):
        honest = packet[:2] + size.to_bytes(2, "big") + packet[4:size]
        assert client.judge(frame(honest)) == Reason.DROP_SHORT, size
        first = honest[:6] + MORE.to_bytes(2, "big") + honest[8:]
        assert client.judge(frame(first)) == Reason.DROP_SHORT, size
    assert client.judge(frame(packet)) == Reason.PASS_NEW


def test_a_truncated_quote(client: Rig) -> None:
    client.judge(_ask())
    client.be(PortMode.REPLY)
    quoted = ipv4(CLIENT, WEB, UDP, udp(5000, 443))
    for size in range(28):
        error = icmp_error(quoted, quoted_bytes=size)
        assert client.judge(frame(ipv4(SERVER, CLIENT, 1, error))) == Reason.DROP_QUOTE, size
    error = icmp_error(quoted, quoted_bytes=28)
    assert client.judge(frame(ipv4(SERVER, CLIENT, 1, error))) == Reason.PASS_ICMP_ERROR


FROM_A_CLIENT = {
    "the world": (_ask(), Reason.PASS_NEW),
    "tcp": (frame(ipv4(CLIENT, WEB, TCP, tcp(5000, 443))), Reason.PASS_NEW),
    "ping": (frame(ipv4(CLIENT, WEB, 1, echo(9))), Reason.PASS_NEW),
    "ESP": (frame(ipv4(CLIENT, WEB, 50, bytes(40))), Reason.PASS_NEW),
    "its resolver": (_ask(to=RESOLVER, port=53), Reason.PASS_NEW),
    "its resolver's other ports": (_ask(to=RESOLVER, port=443), Reason.DROP_RULE),
    "another resolver": (_ask(port=53), Reason.DROP_RULE),
    "encrypted DNS": (_ask(port=853), Reason.DROP_RULE),
    "port 53 of ESP is no port": (
        frame(ipv4(CLIENT, WEB, 50, udp(53, 53) * 3)),
        Reason.PASS_NEW,
    ),
    "a refused prefix": (_ask(to="10.9.9.9"), Reason.DROP_RULE),
    "another client": (_ask(to=OTHER), Reason.DROP_RULE),
    "nobody's address": (frame(ipv4("172.16.0.1", WEB, UDP, udp(1, 443))), Reason.DROP_SOURCE),
    "a refused source": (frame(ipv4("10.9.9.9", WEB, UDP, udp(1, 443))), Reason.DROP_NO_RULE),
    "echo reply": (frame(ipv4(CLIENT, WEB, 1, echo(9, reply=True))), Reason.DROP_ICMP),
    "redirect": (frame(ipv4(CLIENT, WEB, 1, b"\x05\1" + bytes(40))), Reason.DROP_ICMP),
    "timestamp": (frame(ipv4(CLIENT, WEB, 1, b"\x0d\0" + bytes(18))), Reason.DROP_ICMP),
    "later fragment": (_ask(b"x" * 64, fragment=9), Reason.DROP_FRAGMENT),
}


@pytest.mark.parametrize(("data", "reason"), FROM_A_CLIENT.values(), ids=FROM_A_CLIENT.keys())
def test_a_client_is_judged_by_identity(client: Rig, data: bytes, reason: Reason) -> None:
    assert client.judge(data) == reason


def test_a_flow_is_new_once(client: Rig) -> None:
    reasons = [client.judge(_ask()) for _ in range(3)]
    assert reasons == [Reason.PASS_NEW, Reason.PASS_KNOWN, Reason.PASS_KNOWN]
    client.age_flows(181 * SECOND)
    assert client.judge(_ask()) == Reason.PASS_NEW


def test_the_gate_is_asked_before_anything_else(client: Rig) -> None:
    client.judge(_ask())
    for mode, data, passes in (
        (PortMode.CLIENT, _ask(), Reason.PASS_KNOWN),
        (PortMode.REPLY, _answer(), Reason.PASS_REPLY),
    ):
        client.be(mode)
        assert client.judge(data) == passes
        client.panel.open_gate(LINK, boot_ns() - 1)
        assert client.judge(data) == Reason.DROP_GATE
        client.panel.close_gate(LINK)
        assert client.judge(data) == Reason.DROP_GATE
        client.be(mode, gate=0)
        assert client.judge(data) == Reason.DROP_GATE
        client.be(mode, gate=77)
        assert client.judge(data) == Reason.DROP_GATE
    client.be(PortMode.TUPLE)
    client.panel.close_gate(LINK)
    client.panel.put_wires([_row()])
    assert client.judge(_out()) == Reason.PASS_WIRE


def test_only_answers_come_back(client: Rig) -> None:
    for asked in (
        _ask(),
        frame(ipv4(CLIENT, WEB, TCP, tcp(5000, 443))),
        frame(ipv4(CLIENT, WEB, 1, echo(9))),
        frame(ipv4(CLIENT, WEB, 50, bytes(20))),
    ):
        assert client.judge(asked) == Reason.PASS_NEW
    client.be(PortMode.REPLY)
    for data, reason in (
        (_answer(), Reason.PASS_REPLY),
        (frame(ipv4(WEB, CLIENT, TCP, tcp(443, 5000))), Reason.PASS_REPLY),
        (frame(ipv4(WEB, CLIENT, 1, echo(9, reply=True))), Reason.PASS_REPLY),
        (frame(ipv4(WEB, CLIENT, 50, bytes(20))), Reason.PASS_REPLY),
        (frame(ipv4(WEB, CLIENT, 1, echo(8, reply=True))), Reason.DROP_NO_FLOW),
        (frame(ipv4(WEB, CLIENT, 1, echo(9))), Reason.DROP_ICMP),
        (frame(ipv4(WEB, CLIENT, UDP, udp(444, 5000))), Reason.DROP_NO_FLOW),
        (frame(ipv4(WEB, CLIENT, UDP, udp(443, 5001))), Reason.DROP_NO_FLOW),
        (frame(ipv4(SERVER, CLIENT, UDP, udp(443, 5000))), Reason.DROP_NO_FLOW),
        (_answer(to=OTHER), Reason.DROP_NO_FLOW),
        (_answer(to=WEB), Reason.DROP_DESTINATION),
        (_ask(), Reason.DROP_DESTINATION),
    ):
        assert client.judge(data) == reason


@pytest.mark.parametrize(("protocol", "seconds"), [(TCP, 7200), (UDP, 180), (1, 180)])
def test_answers_come_in_time(client: Rig, protocol: int, seconds: int) -> None:
    there = {TCP: tcp(5000, 443), UDP: udp(5000, 443), 1: echo(9)}[protocol]
    back = {TCP: tcp(443, 5000), UDP: udp(443, 5000), 1: echo(9, reply=True)}[protocol]
    client.judge(frame(ipv4(CLIENT, WEB, protocol, there)))
    client.be(PortMode.REPLY)
    client.age_flows((seconds - 60) * SECOND)
    assert client.judge(frame(ipv4(WEB, CLIENT, protocol, back))) == Reason.PASS_REPLY
    client.age_flows(61 * SECOND)
    assert client.judge(frame(ipv4(WEB, CLIENT, protocol, back))) == Reason.DROP_NO_FLOW


def test_a_revoked_rule_cuts_at_once(client: Rig) -> None:
    client.judge(_ask())
    refused = (*POLICY.refused, IPv4Network("198.51.100.0/24"))
    client.panel.put_policy(ClientPolicy(SCOPE, POLICY.clients, refused, POLICY.dns))
    assert client.judge(_ask()) == Reason.DROP_RULE


def test_errors_come_back_when_they_quote(client: Rig) -> None:
    asked = ipv4(CLIENT, WEB, UDP, udp(5000, 443))
    pinged = ipv4(CLIENT, WEB, 1, echo(9))
    client.judge(frame(asked))
    client.judge(frame(pinged))
    client.be(PortMode.REPLY)
    for quote, kind, to, reason in (
        (asked, 3, CLIENT, Reason.PASS_ICMP_ERROR),
        (asked, 11, CLIENT, Reason.PASS_ICMP_ERROR),
        (pinged, 11, CLIENT, Reason.PASS_ICMP_ERROR),
        (asked, 12, CLIENT, Reason.DROP_ICMP),
        (asked, 5, CLIENT, Reason.DROP_ICMP),
        (asked, 3, OTHER, Reason.DROP_QUOTE),
        (ipv4(CLIENT, WEB, UDP, udp(5000, 444)), 3, CLIENT, Reason.DROP_NO_FLOW),
        (ipv4(WEB, CLIENT, UDP, udp(443, 5000)), 3, CLIENT, Reason.DROP_QUOTE),
        (ipv4(CLIENT, WEB, UDP, udp(5000, 443), fragment=9), 3, CLIENT, Reason.DROP_QUOTE),
        (ipv4(CLIENT, WEB, 1, bytes(8), options=b"\1" * 4), 3, CLIENT, Reason.DROP_QUOTE),
    ):
        error = icmp_error(quote, kind=kind)
        assert client.judge(frame(ipv4(SERVER, to, 1, error))) == reason
    fragment = frame(ipv4(SERVER, CLIENT, 1, icmp_error(asked), fragment=MORE))
    assert client.judge(fragment) == Reason.DROP_FRAGMENT


def test_a_client_complains_only_about_its_own_flow(client: Rig) -> None:
    client.judge(_ask())
    came = ipv4(WEB, CLIENT, UDP, udp(443, 5000))
    for source, to, quote, reason in (
        (CLIENT, WEB, came, Reason.PASS_ICMP_ERROR),
        (CLIENT, SERVER, came, Reason.DROP_QUOTE),
        (OTHER, WEB, came, Reason.DROP_QUOTE),
        (CLIENT, WEB, ipv4(WEB, CLIENT, UDP, udp(443, 5001)), Reason.DROP_NO_FLOW),
        (CLIENT, "10.1.1.1", ipv4("10.1.1.1", CLIENT, UDP, udp(1, 1)), Reason.DROP_RULE),
    ):
        assert client.judge(frame(ipv4(source, to, 1, icmp_error(quote)))) == reason


@pytest.mark.parametrize("mode", [PortMode.CLIENT, PortMode.REPLY])
def test_later_fragments_follow_their_first(client: Rig, mode: PortMode) -> None:
    client.judge(_ask())
    make = _ask if mode is PortMode.CLIENT else _answer
    first = {
        PortMode.CLIENT: Reason.PASS_KNOWN,
        PortMode.REPLY: Reason.PASS_REPLY,
    }
    client.be(mode)
    assert client.judge(make(b"x" * 64, fragment=9)) == Reason.DROP_FRAGMENT
    assert client.judge(make(b"x" * 64, fragment=MORE)) == first[mode]
    assert client.judge(make(b"x" * 64, fragment=9 | MORE)) == Reason.PASS_FRAGMENT
    assert client.judge(make(b"x" * 64, fragment=18)) == Reason.PASS_FRAGMENT
    assert client.judge(make(b"x" * 64, fragment=18, number=8)) == Reason.DROP_FRAGMENT
    client.age_flows(31 * SECOND)
    assert client.judge(make(b"x" * 64, fragment=18)) == Reason.DROP_FRAGMENT


def test_fragments_of_what_is_denied_stay_out(client: Rig) -> None:
    assert client.judge(_ask(b"x" * 64, port=53, fragment=MORE)) == Reason.DROP_RULE
    assert client.judge(_ask(b"x" * 64, port=53, fragment=9)) == Reason.DROP_FRAGMENT


def test_without_a_policy_nobody_is_anybody(client: Rig) -> None:
    client.judge(_ask())
    client.panel.remove_policy(SCOPE)
    assert client.judge(_ask()) == Reason.DROP_SOURCE
    client.be(PortMode.REPLY)
    assert client.judge(_answer()) == Reason.DROP_DESTINATION
    client.be(PortMode.CLIENT, scope=SCOPE + 1)
    client.panel.put_policy(POLICY)
    assert client.judge(_ask()) == Reason.DROP_SOURCE


def test_verdicts_say_who_and_why(client: Rig) -> None:
    """Every drop and every new flow, nothing else."""
    asked = _ask(b"x" * 10)
    for _ in range(3):
        client.judge(asked)
    client.judge(_ask(port=53))
    client.judge(frame(bytes(40), 0x0806))
    new, denied, unread = client.panel.events()
    assert (new.reason, new.rule) == (Reason.PASS_NEW, RuleId.WORLD)
    assert (new.source, new.source_port) == (IPv4Address(CLIENT), 5000)
    assert (new.destination, new.destination_port) == (IPv4Address(WEB), 443)
    assert (new.protocol, new.port, new.length) == (UDP, LINK, len(asked) - 14)
    assert (new.source_identity, new.destination_identity) == (
        CIDR_IDENTITY | Trait.CLIENT | Trait.REFUSED,
        WORLD,
    )
    assert (denied.reason, denied.rule) == (Reason.DROP_RULE, RuleId.OTHER_DNS)
    assert (unread.reason, unread.source) == (Reason.DROP_NOT_IPV4, IPv4Address(0))
    assert new.when <= denied.when <= boot_ns()
    assert client.panel.events() == []


def test_lost_verdicts_are_counted(client: Rig) -> None:
    denied = _ask(port=53)
    for _ in range(8000):
        libbpf.run_program(client.panel.program_fd, denied)
    lost = client.panel.counters()[Reason.EVENT_LOST]
    assert lost > 0
    assert len(client.panel.events()) + lost == 8000
