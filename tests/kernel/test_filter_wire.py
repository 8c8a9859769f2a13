"""The filter on real links: it is the wire, and nothing passes where it is not whole."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from chainctl.errors import MendHost
from chainctl.host.clock import boot_ns
from chainctl.model.parts import TCP, UDP, ClientPolicy, PortMode
from chainctl.net import clsact, libbpf
from chainctl.net.filter import IDENTITY_OBJECT, PanelFilter, Port, mount_bpffs
from chainctl.net.identity import Reason
from tests.kernel.filter_rig import HOUR, unmount, wait_until
from tests.kernel.filter_wires import LEFT, RIGHT, A, B, Wire, crosses, wire
from tests.kernel.open_wire import OBJECT, attach_open_wire
from tests.kernel.packets import ETHERNET, frame, ipv4, udp

pytestmark = pytest.mark.root

FLOOD = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((sys.argv[1], int(sys.argv[2])))
to = (sys.argv[3], int(sys.argv[4]))
for number in range(int(sys.argv[5])):
    sender.sendto(b"flood", to)
print("done")
"""


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Wire]:
    """A whole wire with the filter at both ends."""
    with wire(tmp_path / "bpf") as made:
        made.fill()
        made.attach()
        yield made


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Wire]:
    """Legs and loaded maps, nothing else."""
    with wire(tmp_path / "bpf") as made:
        yield made


def test_there_is_no_way_but_the_filter(bare: Wire) -> None:
    bare.fill()
    assert not bare.carries()
    assert not bare.attached()
    bare.attach()
    assert bare.attached()
    assert bare.carries()
    assert bare.carries(back=True)
    bare.in_panel(lambda: bare.panel.detach(bare.a))
    assert not bare.carries()
    assert bare.carries(back=True)
    bare.attach()
    assert bare.carries()


def test_a_filter_without_rows_is_a_cut_wire(bare: Wire) -> None:
    bare.attach()
    assert not bare.carries()
    assert bare.panel.counters() == {Reason.DROP_NO_PORT: 1}
    bare.fill()
    assert bare.carries()
    removals: list[Callable[[], None]] = [
        lambda: bare.panel.remove_wires(bare.panel.wires()),
        lambda: bare.panel.remove_far(bare.a),
        lambda: bare.panel.remove_port(bare.a),
    ]
    for remove in removals:
        bare.in_panel(remove)
        assert not bare.carries()
        bare.fill()
        assert bare.carries()


def test_a_new_link_does_not_inherit_a_wire(joined: Wire) -> None:
    """The far end is deleted, and a leg of somebody else gets its ifindex and its address."""
    spaces = joined.namespaces
    spaces.ip("panel", "link", "del", "pb")
    wait_until(lambda: joined.b not in joined.panel.fars().values())
    spaces.make("c")
    assert joined.leg("c", B, "index", str(joined.b)) == joined.b
    with spaces.udp("c", B, RIGHT) as stranger:
        to = (str(B), RIGHT)
        assert not crosses(joined.left, stranger, to, b"for b")
        assert joined.panel.counters()[Reason.DROP_NO_FAR_END] == 1
        # What keeps it out is the missing far end alone: with it, everything else would do.
        joined.join()
        assert crosses(joined.left, stranger, to, b"for c")
        assert not crosses(stranger, joined.left, (str(A), LEFT), b"from c")


def test_a_removed_namespace_takes_the_wire_along(joined: Wire) -> None:
    joined.right.close()
    joined.namespaces.remove("b")
    wait_until(lambda: joined.b not in joined.panel.fars().values())


def test_lost_pins_are_found_and_replaced(joined: Wire) -> None:
    """The old policy goes on, which is why somebody has to look."""
    unmount(joined.pins)
    assert joined.carries()
    assert not joined.panel.pins_whole()
    mount_bpffs(joined.pins)
    with contextlib.closing(PanelFilter.open(IDENTITY_OBJECT, joined.pins)) as anew:
        assert anew.pins_whole()
        assert not joined.attached(anew)
        joined.attach(anew)
        assert joined.attached(anew)
        assert not joined.attached(joined.panel)
        assert not joined.carries()
        joined.fill(anew)
        assert joined.carries()


def test_a_restarted_supervisor_finds_its_filter(joined: Wire) -> None:
    """Another process loads the program anew; the attached one is as good."""
    with contextlib.closing(PanelFilter.open(IDENTITY_OBJECT, joined.pins)) as again:
        assert again.program_id != joined.panel.program_id
        assert joined.attached(again)
        assert joined.carries()


def test_a_filter_before_ours_is_seen_and_removed(joined: Wire) -> None:
    opened = libbpf.Object(OBJECT, pin_root=joined.pins / "v1", device_maps=["far_map"])
    try:
        program = opened.program("open_wire")
        joined.in_panel(lambda: libbpf.attach(joined.a, libbpf.INGRESS, program, 1, 1))
    finally:
        opened.close()
    joined.panel.remove_wires(joined.panel.wires())
    assert joined.carries(), "this is what it would do"
    assert not joined.attached()
    (stranger,) = joined.in_panel(lambda: joined.panel.foreign_filters(joined.a))
    assert "handle 0x1" in stranger
    joined.in_panel(lambda: joined.panel.remove_foreign_filters(joined.a))
    assert joined.attached()
    assert not joined.carries()


def test_a_tcx_program_is_seen(joined: Wire) -> None:
    program = joined.panel.program_fd
    attach = ctypes.CDLL("libbpf.so.1").bpf_prog_attach
    if joined.in_panel(lambda: attach(program, joined.a, 46, 0)):
        pytest.skip("no TCX before Linux 6.6")
    assert not joined.attached()
    (stranger,) = joined.in_panel(lambda: joined.panel.foreign_filters(joined.a))
    assert "tcx" in stranger


def test_a_filter_after_ours_does_not_matter(joined: Wire) -> None:
    later = libbpf.Object(OBJECT)
    try:
        program = later.program("pass_all")
        joined.in_panel(lambda: libbpf.attach(joined.a, libbpf.INGRESS, program, 1, 2))
    finally:
        later.close()
    assert joined.attached()
    assert joined.carries()


def test_a_program_in_our_place_is_seen(joined: Wire) -> None:
    joined.panel.remove_wires(joined.panel.wires())
    assert not joined.carries()
    joined.in_panel(lambda: attach_open_wire(joined.pins, joined.a))
    assert joined.carries()
    assert not joined.attached()
    joined.attach()
    assert joined.attached()
    assert not joined.carries()


def test_frames_of_every_kind_stay_out(joined: Wire) -> None:
    """Sent as they are, also shorter than any test run allows and with a tag the card strips."""
    inner = ipv4(A, B, UDP, udp(LEFT, RIGHT, b"x" * 20))
    frames = [
        (frame(b"\0\1\x08\0" + inner, 0x8100), Reason.DROP_VLAN),
        (frame(b"\0\1\x08\0" + inner, 0x88A8), Reason.DROP_VLAN),
        (frame(b"\x60" + bytes(50), 0x86DD), Reason.DROP_NOT_IPV4),
        (frame(b"\0\1\x08\0\6\4\0\1" + bytes(20), 0x0806), Reason.DROP_NOT_IPV4),
        (frame(ipv4(A, B, UDP, udp(LEFT, RIGHT), options=b"\x01" * 4)), Reason.DROP_OPTIONS),
        *((ETHERNET + b"\x08\0" + inner[:size], Reason.DROP_SHORT) for size in range(1, 48)),
    ]
    with (
        joined.namespaces.raw("a", "up0") as sender,
        joined.namespaces.raw("b", "up0") as receiver,
    ):
        for data, reason in frames:
            before = joined.panel.counters().get(reason, 0)
            sender.send(data)
            wait_until(lambda r=reason, n=before: joined.panel.counters().get(r, 0) == n + 1)
        sender.send(frame(inner))
        assert receiver.recv(2000) == frame(inner), "the first and only frame that arrives"
    assert sum(joined.panel.counters().values()) == len(frames) + 1


def test_headers_may_lie_in_pieces(joined: Wire) -> None:
    """A frame of which the kernel keeps only the Ethernet header in one piece."""
    for space, link in (("a", "up0"), ("b", "up0"), ("panel", "pa"), ("panel", "pb")):
        joined.namespaces.ip(space, "link", "set", link, "mtu", "9000")
    joined.panel.put_port(joined.a, Port(256, A, 9000, PortMode.TUPLE, 0, 0))
    in_one_piece = struct.pack("=BBHHHH", 0, 0, len(ETHERNET) + 2, 0, 0, 0)  # virtio_net_hdr
    data = frame(ipv4(A, B, UDP, udp(LEFT, RIGHT, b"in pieces".ljust(8000))))
    with (
        joined.namespaces.raw("a", "up0") as sender,
        joined.namespaces.raw("b", "up0") as receiver,
    ):
        sender.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        sender.send(in_one_piece + data)
        assert receiver.recv(9000) == data


def test_a_frame_arrives_as_the_receiver_s_own(joined: Wire) -> None:
    """Legs know no neighbours, so the MAC address of a frame is never the receiver's."""
    with (
        joined.namespaces.raw("a", "up0") as sender,
        joined.namespaces.raw("b", "up0") as receiver,
    ):
        sender.send(frame(ipv4(A, B, UDP, udp(LEFT, RIGHT))))
        _, (_, _, packet_type, *_) = receiver.recvfrom(100)
    assert packet_type == socket.PACKET_HOST


def test_too_long_for_the_far_leg(joined: Wire) -> None:
    joined.panel.put_port(joined.a, Port(256, A, 1000, PortMode.TUPLE, 0, 0))
    assert joined.carries(size=1000 - 28)
    assert not joined.carries(size=1000 - 27)
    assert joined.panel.counters()[Reason.DROP_TOO_LONG] == 1


def test_a_tcp_stream_crosses_in_large_pieces(bare: Wire) -> None:
    bare.fill(protocol=TCP)
    bare.attach()
    total = 32 << 20
    spaces = bare.namespaces
    with spaces.inside("b", lambda: socket.create_server((str(B), RIGHT))) as listener:
        listener.settimeout(5)
        sender = spaces.inside(
            "a", lambda: socket.create_connection((str(B), RIGHT), 5, (str(A), LEFT))
        )
        receiver, _ = listener.accept()
        with sender, receiver:
            receiver.settimeout(10)
            work = threading.Thread(target=lambda: sender.sendall(bytes(total)))
            work.start()
            left = total
            while left:
                left -= len(receiver.recv(1 << 20))
            work.join()
    counters = bare.panel.counters()
    assert counters.keys() == {Reason.PASS_WIRE}
    assert counters[Reason.PASS_WIRE] < total / 1448, "pieces of the wire's size: no offload"


def _judge_clients(joined: Wire) -> None:
    policy = ClientPolicy(1, clients=(IPv4Network(f"{A}/32"),), refused=(), dns=())
    joined.panel.put_policy(policy)
    client = Port(257, IPv4Address(0), 1500, PortMode.CLIENT, 1, joined.a)
    joined.panel.put_port(joined.a, client)
    joined.panel.put_port(joined.b, client._replace(mode=PortMode.REPLY))
    joined.panel.open_gate(joined.a, boot_ns() + HOUR)


def test_fragments_arrive_whole_and_come_back(joined: Wire) -> None:
    _judge_clients(joined)
    for end in (joined.left, joined.right):
        end.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DONT
    for size in (20, 1473, 3000, 9000):
        assert joined.carries(size=size), size
        assert joined.carries(back=True, size=size), size
    assert joined.panel.counters()[Reason.PASS_FRAGMENT] == 2 * (1 + 2 + 6)


def test_the_gate_closes_by_itself(joined: Wire) -> None:
    _judge_clients(joined)
    assert joined.carries()
    assert joined.carries(back=True)
    closing = boot_ns() + 300_000_000
    joined.panel.open_gate(joined.a, closing)
    last = 0
    while Reason.DROP_GATE not in joined.panel.counters():
        joined.left.sendto(b"x", (str(B), RIGHT))
        last = boot_ns()
    assert 0 <= last - closing < 1_000_000_000  # the rest is waiting for a processor
    assert not joined.carries()
    assert not joined.carries(back=True)


def _flood(joined: Wire, count: int) -> subprocess.Popen[str]:
    space = f"--net=/run/netns/{joined.namespaces.full('a')}"
    words = [str(A), str(LEFT), str(B), str(RIGHT), str(count)]
    return subprocess.Popen(
        ["nsenter", space, sys.executable, "-I", "-S", "-c", FLOOD, *words],
        stdout=subprocess.PIPE,
        text=True,
    )


def _swap_during(joined: Wire, count: int, *, remove_first: bool) -> int:
    """Swap the program until a flood of `count` ends; how often."""
    swaps = 0

    def swap_until_end(flood: subprocess.Popen[str]) -> None:
        nonlocal swaps
        deadline = time.monotonic() + 60
        while flood.poll() is None and time.monotonic() < deadline:
            if remove_first:
                joined.panel.detach(joined.a)
            joined.panel.attach(joined.a)
            swaps += 1

    with _flood(joined, count) as flood:
        joined.in_panel(lambda: swap_until_end(flood))
        assert flood.communicate(timeout=60)[0] == "done\n"
    return swaps


def test_a_swap_loses_nothing(joined: Wire) -> None:
    joined.left.close()
    count = 100_000
    before = joined.namespaces.received("b", "up0")
    assert _swap_during(joined, count, remove_first=False) > 100
    assert joined.namespaces.received("b", "up0") - before == count
    # The control: with the program away for an instant packets are lost. Never let through.
    before = joined.namespaces.received("b", "up0")
    assert _swap_during(joined, count, remove_first=True) > 100
    assert joined.namespaces.received("b", "up0") - before < count


def test_a_swap_of_what_is_denied_leaks_nothing(joined: Wire) -> None:
    """Whichever way: where the filter is not, there is no wire."""
    joined.left.close()
    joined.panel.remove_wires(joined.panel.wires())
    before = joined.namespaces.received("b", "up0")
    for remove_first in (False, True):
        assert _swap_during(joined, 50_000, remove_first=remove_first) > 50
    assert joined.namespaces.received("b", "up0") == before
    assert joined.namespaces.received("panel", "pa") >= 100_000


def test_filters_are_read_in_order(joined: Wire) -> None:
    (ours,) = joined.in_panel(lambda: clsact.read_filters(joined.a, libbpf.INGRESS))
    assert ours.is_ours
    assert ours.program == joined.panel.program_id
    assert joined.in_panel(lambda: clsact.read_filters(99_999, libbpf.INGRESS)) == []


def test_attaching_to_no_link_says_so(joined: Wire) -> None:
    with pytest.raises(MendHost) as refusal:
        joined.in_panel(lambda: joined.panel.attach(99_999))
    assert refusal.value.code == "C323"
    joined.in_panel(lambda: joined.panel.detach(99_999))
