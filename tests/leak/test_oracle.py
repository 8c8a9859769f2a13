"""What the oracle says when nothing leaks, and when it cannot know."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.leak.allow import Anything, Flow, Layer
from tests.leak.canary import KINDS, PLAIN, Dns, Expect, Frames, Tcp, Udp
from tests.leak.capture import Capture
from tests.leak.frames import UDP, ethernet, ipv4, udp
from tests.leak.namespace import inside, send_frame
from tests.leak.oracle import ANY, Oracle
from tests.leak.verdict import Outcome
from tests.leak.wires import BOX_LAN, CLIENT_ADDRESS, FAR_ADDRESS, Wires
from tests.waiting import wait_until

pytestmark = pytest.mark.root


def add_client(oracle: Oracle, wires: Wires) -> None:
    oracle.client(wires.client, "eth0", address=CLIENT_ADDRESS, gateway=BOX_LAN)


def watch_far(oracle: Oracle, wires: Wires) -> None:
    oracle.watch(wires.far, "eth0", "X", allow=[Anything()], may_carry_canaries=True)


until = partial(wait_until, seconds=5.0)


@contextlib.contextmanager
def tcp_server(namespace: Path) -> Iterator[None]:
    """Takes one connection at the far end and reads until the end of the block."""
    ready, done = threading.Event(), threading.Event()
    with namespace.open("rb") as entrance:
        work = partial(serve_tcp, ready, done)
        server = threading.Thread(target=inside, args=(entrance.fileno(), work))
        server.start()
        try:
            assert ready.wait(5)
            yield
        finally:
            done.set()
            server.join()


def serve_tcp(ready: threading.Event, done: threading.Event) -> None:
    with socket.create_server((FAR_ADDRESS, 7)) as server:
        server.settimeout(5)
        ready.set()
        taken, _ = server.accept()
        with taken:
            taken.settimeout(0.05)
            while not done.is_set():
                with contextlib.suppress(TimeoutError, ConnectionResetError):
                    if not taken.recv(1 << 16):
                        return


@contextlib.contextmanager
def live(oracle: Oracle, namespace: Path) -> Iterator[Capture]:
    """A second capture, to see how far things are while the oracle still collects."""
    capture = Capture(namespace, oracle.directory)
    oracle.sniffer.add(capture)
    try:
        yield capture
    finally:
        oracle.sniffer.remove(capture)
        capture.close()


def test_everything_is_delivered_and_proved(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    with tcp_server(wires.far):
        oracle.send(Tcp(FAR_ADDRESS, 7, count=50), expect=Expect.DELIVERED, name="tcp")
    oracle.send(Dns(FAR_ADDRESS), expect=Expect.DELIVERED, name="dns")
    oracle.send(Udp(FAR_ADDRESS, 7, size=4000), expect=Expect.DELIVERED, name="big udp")
    oracle.send(Frames(PLAIN, FAR_ADDRESS), expect=Expect.DELIVERED, name="frames")
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.sent == {"tcp": 50, "dns": 5, "big udp": 5, "frames": 3 * len(PLAIN)}
    assert {name: d.count for name, d in verdict.delivered.items()} == verdict.sent
    assert all(d.sources == (CLIENT_ADDRESS,) for d in verdict.delivered.values())
    assert verdict.control == {"X": True}
    assert verdict.counters_equal
    assert not verdict.drops
    record = json.loads((oracle.directory / "verdict.json").read_text())
    assert record["outcome"] == "pass"


def test_the_wire_is_seen_from_both_ends_with_equal_counters(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    for place in ("client", "box", "far"):
        path = Path("/run/netns", f"{wires.prefix}{place}")
        oracle.watch(path, ANY, place, allow=[Anything()], may_carry_canaries=True)
    oracle.send(Udp(FAR_ADDRESS, 7, count=20_000, rate=10_000), expect=Expect.DELIVERED, name="f")
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.delivered["f"].count == verdict.c0["f"] == 20_000
    assert verdict.frames["box"] >= 40_000
    assert verdict.counters_equal


def test_a_flood_tells_how_long_nothing_arrived(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    flood = oracle.start(Udp(FAR_ADDRESS, 7, count=60_000, rate=1000), expect=Expect.EITHER)
    with live(oracle, wires.far) as seen:
        until(lambda: seen.frames_received > 300)
        wires.run("box", "sysctl", "-qw", "net.ipv4.ip_forward=0")
        shut = time.time()
        until(lambda: time.time() > shut + 0.5)
        before = seen.frames_received
        wires.run("box", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        until(lambda: seen.frames_received > before + 300)
    verdict = oracle.judge()  # Ends the flood.
    emission = flood.emission
    verdict.assert_clean()
    delivery = verdict.delivered[emission.name]
    assert 0.4 < delivery.longest_gap < 2.0
    assert 600 <= delivery.count < emission.sent - 300
    assert verdict.c0[emission.name] == emission.sent


def test_a_stream_is_cut_and_what_left_is_still_counted(oracle: Oracle, wires: Wires) -> None:
    """Lines that wait in the client's kernel were not sent; those sent again count once."""
    add_client(oracle, wires)
    watch_far(oracle, wires)
    with tcp_server(wires.far):
        stream = oracle.start(Tcp(FAR_ADDRESS, 7, count=60_000, rate=1000), expect=Expect.EITHER)
        with live(oracle, wires.far) as seen:
            until(lambda: seen.frames_received > 300)
        wires.run("box", "sysctl", "-qw", "net.ipv4.ip_forward=0")
        shut = time.time()
        until(lambda: time.time() > shut + 0.5)
        emission = stream.stop()
    verdict = oracle.judge()
    verdict.assert_clean()
    assert emission.sent > verdict.delivered[emission.name].count > 100


def test_nothing_sent_is_no_pass(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    verdict = oracle.judge()
    assert (verdict.outcome, verdict.why) == (Outcome.ERROR, ("no canary was sent",))


def test_without_canaries_when_it_is_meant(oracle: Oracle, wires: Wires) -> None:
    watch_far(oracle, wires)
    oracle.judge(without_canaries=True).assert_clean()


def test_an_emission_that_never_left_is_no_pass(oracle: Oracle, wires: Wires) -> None:
    """The kernel takes datagrams it cannot send: nobody answers for this neighbour."""
    add_client(oracle, wires)
    watch_far(oracle, wires)
    oracle.send(Udp("10.77.1.99", 9), name="to nobody")
    verdict = oracle.judge()
    assert verdict.outcome is Outcome.ERROR
    assert "to nobody: sent 5, but 0 seen on the client's link" in verdict.why


def test_a_sender_that_dies_is_no_pass(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    sending = oracle.start(Udp(FAR_ADDRESS, 9, count=1000), expect=Expect.EITHER, name="dying")
    sending.process.kill()
    assert "the sender died" in sending.wait().errors[0]
    assert oracle.judge().outcome is Outcome.ERROR


def test_the_report_of_a_sender_that_ended_long_ago_is_read(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    sending = oracle.start(Udp(FAR_ADDRESS, 9, count=3, rate=0), expect=Expect.DELIVERED)
    until(lambda: sending.process.poll() is not None)
    assert sending.stop().sent == 3
    oracle.judge().assert_clean()


def test_what_had_to_arrive_and_did_not_is_no_pass(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    wires.run("box", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    oracle.send(Udp(FAR_ADDRESS, 9), expect=Expect.DELIVERED, name="lost")
    verdict = oracle.judge()
    assert (verdict.outcome, verdict.why) == (Outcome.ERROR, ("lost: nothing of it arrived",))


def test_a_layer_that_had_to_be_seen_and_was_not_is_no_pass(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    layer = Layer("hop1", FAR_ADDRESS, 1, 2)
    oracle.watch(wires.far, "eth0", "W1", allow=[Anything()], shows=[layer])
    oracle.send(Udp("10.77.1.1", 9))
    verdict = oracle.judge()
    assert (verdict.outcome, verdict.why) == (Outcome.ERROR, ("W1: layer hop1 not seen",))


def test_a_control_that_is_not_seen_is_no_pass(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    oracle.control("X", wires.client, "eth0")  # Not this wire's other end.
    oracle.send(Udp(FAR_ADDRESS, 9), expect=Expect.DELIVERED)
    verdict = oracle.judge()
    assert (verdict.outcome, verdict.why) == (Outcome.ERROR, ("X: control not seen",))


def test_a_control_from_the_other_end_is_seen(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    oracle.watch(wires.far, "eth0", "W1", control=False)
    oracle.control("W1", wires.box, "up0")
    oracle.send(Udp(BOX_LAN, 9))
    oracle.judge().assert_clean()


def test_no_control_at_all_is_no_pass(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    oracle.watch(wires.far, "eth0", "W1", control=False)
    oracle.send(Udp(BOX_LAN, 9))
    assert oracle.judge().why == ("W1: control not seen",)


def test_a_death_of_the_sniffer_makes_the_run_invalid(wires: Wires, tmp_path: Path) -> None:
    """Its disk is full: a real death, and one that loses frames."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "oracle-small", small], check=True)
    try:
        with Oracle(small) as oracle:
            add_client(oracle, wires)
            watch_far(oracle, wires)
            ballast = small / "ballast"
            with contextlib.suppress(OSError):
                ballast.write_bytes(bytes(1 << 20))
            oracle.send(Udp(FAR_ADDRESS, 9, count=200), expect=Expect.DELIVERED)
            until(lambda: bool(oracle.sniffer.failure))
            ballast.unlink()
            verdict = oracle.judge()
            assert verdict.outcome is Outcome.INVALID
            assert "the sniffer died: OSError" in verdict.why[0]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("strict", [True, False])
def test_a_starved_capture_makes_the_run_invalid(
    strict: bool, wires: Wires, tmp_path: Path
) -> None:
    with Oracle(tmp_path, ring_bytes=2 << 20) as oracle:
        add_client(oracle, wires)
        allow = [Anything()]
        oracle.watch(
            wires.far, "eth0", "X", allow=allow, may_carry_canaries=True, strict_counters=strict
        )
        with oracle.sniffer.paused():
            many = Udp(FAR_ADDRESS, 9, count=20_000, rate=0, size=1400)
            oracle.send(many, expect=Expect.DELIVERED)
        verdict = oracle.judge()
    assert verdict.outcome is Outcome.INVALID
    assert verdict.drops > 1000
    counted = [words for words in verdict.why if words.startswith("X: counted but not captured")]
    assert bool(counted) is strict
    assert [words for words in verdict.why if words.startswith("X: ") and "dropped" in words]


def test_a_namespace_goes_when_it_is_released(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    watch_far(oracle, wires)
    oracle.send(Udp(FAR_ADDRESS, 9), expect=Expect.DELIVERED)

    def joined() -> bool:
        links = subprocess.run(
            ["ip", "-n", f"{wires.prefix}box", "link"], check=True, capture_output=True, text=True
        )
        return "up0" in links.stdout

    subprocess.run(["ip", "netns", "del", f"{wires.prefix}far"], check=True)
    assert joined()  # An open capture keeps the namespace, and with it the wire.
    oracle.release(wires.far)
    until(lambda: not joined())
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.delivered["udp to 10.78.1.2:9"].count == 5


def test_an_interface_that_goes_away_is_told(oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    oracle.watch(wires.box, ANY, "box", allow=[Anything()], may_carry_canaries=True)
    oracle.send(Udp(FAR_ADDRESS, 9), expect=Expect.DELIVERED)
    wires.run("far", "ip", "link", "del", "eth0")
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.gaps == ("box: up0 went away",)
    assert verdict.delivered["udp to 10.78.1.2:9"].count == 5


def test_an_index_that_is_used_again_has_its_new_name(oracle: Oracle, wires: Wires) -> None:
    """Otherwise frames of a new wire would be judged by the rules of the old one."""
    add_client(oracle, wires)
    allow = [Flow("10.78.1.0/24", None, "10.78.1.0/24", None, UDP)]
    oracle.watch(wires.box, "old", "old", allow=allow, control=False)
    oracle.watch(wires.box, ANY, "rest", allow=[Anything()], may_carry_canaries=True)
    for name in ("old", "new"):
        peer = ("type", "veth", "peer", "name", f"{name}-peer", "index", "4001")
        wires.run("box", "ip", "link", "add", name, "index", "4000", *peer)
        for link in (name, f"{name}-peer"):
            wires.run("box", "ip", "link", "set", link, "up")
        oracle.control("old" if name == "old" else "rest", wires.box, name)
        with wires.box.open("rb") as box:
            for port in (1, 2):
                packet = ipv4("9.9.9.9", "8.8.8.8", UDP, udp("9.9.9.9", port, "8.8.8.8", 1, b""))
                if name == "new":
                    assert inside(box.fileno(), partial(send_frame, name, ethernet(packet)))
        wires.run("box", "ip", "link", "del", name)
    oracle.send(Udp(BOX_LAN, 9), expect=Expect.DELIVERED)
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.frames["old"] == 0


def test_a_name_holds_from_the_look_before_it_was_heard_of(wires: Wires, tmp_path: Path) -> None:
    """Frames come before anybody has read that their interface is a new one."""
    with contextlib.closing(Capture(wires.box, tmp_path)) as capture:
        times = []
        for name in ("old", "new"):
            wires.run("box", "ip", "link", "add", name, "index", "4000", "type", "bridge")
            times.append(time.time())
            capture.drain()
            times.append(time.time())
            wires.run("box", "ip", "link", "del", name)
            capture.drain()
        assert [capture.name(4000, when) for when in times] == ["old", "old", "new", "new"]


def test_a_link_without_its_other_end_takes_no_control(oracle: Oracle, wires: Wires) -> None:
    wires.run("box", "ip", "link", "set", "up0", "down")
    with wires.far.open("rb") as far:
        assert not inside(far.fileno(), partial(send_frame, "eth0", ethernet(b"x" * 46)))
    with pytest.raises(ValueError, match="no frame can be sent from eth0"):
        oracle.control("X", wires.far, "eth0")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_frame_is_proved_on_the_link(kind: str, oracle: Oracle, wires: Wires) -> None:
    add_client(oracle, wires)
    oracle.watch(wires.box, "lan", "lan", allow=[Anything()], may_carry_canaries=True)
    oracle.send(Frames((kind,), FAR_ADDRESS, 9), expect=Expect.DELIVERED, name=kind)
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.delivered[kind].count == verdict.sent[kind] == 3
