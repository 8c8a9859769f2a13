"""The sniffer between two namespaces: one is the hop, the other the server with its resolver."""

from __future__ import annotations

import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from chainctl.host import clock
from chainctl.host.netns import FORWARDING, Namespaces
from chainctl.model.parts import NsName
from chainctl.supervisor.passage import Passage
from chainctl.supervisor.sniffer import INTERVAL, Place, Sniffer
from chainctl.supervisor.verdict import is_failing, outermost_dead
from chainctl.supervisor.worker import GATE_TIMEOUT
from tests.waiting import wait_until

pytestmark = pytest.mark.root

HOP, SERVER = NsName("U.hop"), NsName("U.server")
RESOLVER, NOBODY = IPv4Address("10.64.0.1"), IPv4Address("10.64.0.99")
PATIENCE = 10.0


class Wire:
    """A veth pair that stands for a tunnel."""

    def __init__(self, pins: Path) -> None:
        self.namespaces = Namespaces(pins)
        for name in (HOP, SERVER):
            self.namespaces.create(name, FORWARDING if name == SERVER else {})
        far = self.namespaces.path(SERVER)
        self.hop(f"ip link add tunA type veth peer name far0 netns {far}")
        for command in ("ip address add 10.64.0.1/24 dev far0", "ip link set far0 up"):
            self.server(command)
        mac = self.server("cat /sys/class/net/far0/address").strip()
        for command in (
            "ip address add 10.64.0.2/32 dev tunA",
            "ip link set tunA up",
            "ip route add default dev tunA",
            f"ip neighbour add 192.0.2.1 lladdr {mac} dev tunA",
        ):
            self.hop(command)

    def hop(self, command: str) -> str:
        return self._inside(HOP, command)

    def server(self, command: str) -> str:
        return self._inside(SERVER, command)

    def _inside(self, ns: NsName, command: str) -> str:
        pin = self.namespaces.path(ns)
        # A new mount namespace, since /sys shows the links of the namespace it was mounted in.
        inside = f"mount -t sysfs sysfs /sys && {command}"
        return subprocess.run(
            ["nsenter", f"--net={pin}", "unshare", "--mount", "sh", "-c", inside],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout

    def place(self, resolver: IPv4Address | None = RESOLVER) -> Place:
        server = IPv4Address("198.51.100.1")
        return Place(HOP, "tunA", IPv4Address("10.64.0.2"), resolver, server)

    def udp(self, ns: NsName) -> socket.socket:
        sock = self.namespaces.call(ns, lambda: socket.socket(type=socket.SOCK_DGRAM))
        sock.settimeout(PATIENCE)
        return sock

    def set_up(self, ns: NsName, name: str, value: str) -> None:
        self.namespaces.call(ns, lambda: Path("/proc/sys", name).write_text(value))

    def close(self) -> None:
        for name in self.namespaces.names():
            self.namespaces.remove(name)
        self.namespaces.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path / "pins")
    yield wire
    wire.close()


@pytest.fixture
def sniffer(wire: Wire) -> Iterator[Sniffer]:
    sniffer = Sniffer(wire.namespaces)
    yield sniffer
    sniffer.close()


_until = partial(wait_until, seconds=PATIENCE)


@pytest.mark.parametrize(
    "resolver", [RESOLVER, None, NOBODY], ids=["a resolver", "none", "a dead one"]
)
def test_a_hop_that_answers_is_proved_at_once(
    wire: Wire, sniffer: Sniffer, resolver: IPv4Address | None
) -> None:
    """By its resolver, or by the server's own "time exceeded"."""
    sniffer.watch("home/guard", wire.place(resolver))
    asked = clock.boot_seconds()
    reading = sniffer.prove("home/guard", patience=PATIENCE)
    assert asked < reading.last_heard < asked + PATIENCE / 2
    assert clock.boot_seconds() < asked + PATIENCE / 2
    assert reading.unanswered == 0
    assert reading.silent_since == 0


def test_a_round_of_questions_is_answered_once(wire: Wire, sniffer: Sniffer) -> None:
    """Resolver and server both answer the first round."""
    sniffer.watch("home/guard", wire.place())
    _until(lambda: sniffer.reading("home/guard").heard >= 3)
    reading = sniffer.reading("home/guard")
    assert reading.heard <= reading.sent


def test_silence_is_waited_for_and_counted(wire: Wire, sniffer: Sniffer) -> None:
    wire.server("ip link set far0 down")
    asked = clock.boot_seconds()
    sniffer.watch("home/guard", wire.place())
    reading = sniffer.prove("home/guard", patience=0.3)
    assert clock.boot_seconds() >= asked + 0.3
    assert (reading.heard, reading.last_heard) == (0, 0)
    assert reading.unanswered == reading.sent >= 2
    assert asked <= reading.silent_since


def test_what_falls_silent_is_heard_again(wire: Wire, sniffer: Sniffer) -> None:
    sniffer.watch("home/guard", wire.place())
    first = sniffer.prove("home/guard", patience=PATIENCE)
    heard = first.last_heard
    _until(lambda: sniffer.reading("home/guard").heard >= 3)
    assert sniffer.reading("home/guard").back_since == first.back_since > 0, "it was never away"
    wire.server("ip link set far0 down")
    _until(lambda: sniffer.reading("home/guard").overdue(clock.boot_seconds()) >= 3)
    assert sniffer.reading("home/guard").last_heard >= heard
    wire.server("ip link set far0 up")
    again = sniffer.prove("home/guard", patience=PATIENCE)
    assert again.last_heard > heard
    assert again.unanswered == 0
    assert again.back_since > first.back_since


def test_a_proof_is_never_older_than_the_question(wire: Wire, sniffer: Sniffer) -> None:
    sniffer.watch("home/guard", wire.place())
    for _ in range(5):
        asked = clock.boot_seconds()
        assert sniffer.prove("home/guard", patience=PATIENCE).last_heard > asked


def test_sizes_that_do_not_fit_do_not_come_back(wire: Wire, sniffer: Sniffer) -> None:
    wire.hop("ip link set tunA mtu 1400")
    sniffer.watch("home/guard", wire.place())
    before = sniffer.prove("home/guard", patience=PATIENCE)
    assert sniffer.measure("home/guard", [1400, 1000], patience=PATIENCE) >= {1400}
    assert sniffer.measure("home/guard", [1401, 1400], patience=0.5) == {1400}
    _until(lambda: sniffer.reading("home/guard").sent > before.sent)
    reading = sniffer.reading("home/guard")
    assert reading.sent - reading.heard <= 1, "sizes that do not pass are no loss"


def _sockets() -> int:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(fd.readlink()))
        except FileNotFoundError:  # What iterdir itself held open.
            continue
    return sum(link.startswith("socket:") for link in links)


def test_forgetting_closes_the_socket(wire: Wire, sniffer: Sniffer) -> None:
    before = _sockets()
    for hop in ("guard", "exit"):
        sniffer.watch(f"home/{hop}", wire.place())
    sniffer.watch("homely/guard", wire.place())
    assert _sockets() == before + 3
    sniffer.forget("home/guard")
    sniffer.forget("home/guard")
    assert _sockets() == before + 2
    sniffer.forget_all("home/")
    assert _sockets() == before + 1
    assert sniffer.reading("home/exit").sent == 0
    sniffer.forget_all("homely/")
    assert _sockets() == before


def test_another_device_of_the_same_name_is_asked_anew(wire: Wire, sniffer: Sniffer) -> None:
    sniffer.watch("home/guard", wire.place())
    sniffer.prove("home/guard", patience=PATIENCE)
    known = sniffer.reading("home/guard").heard
    sniffer.watch("home/guard", wire.place())
    assert sniffer.reading("home/guard").heard >= known, "the same place goes on"
    place = wire.place()
    other = replace(place, device=(1, 2))
    sniffer.watch("home/guard", other)
    assert sniffer.prove("home/guard", patience=PATIENCE).heard <= 2


def test_a_server_that_floods_is_one_among_others(wire: Wire, sniffer: Sniffer) -> None:
    """Of a queue that may never be empty only so much is taken in one turn."""
    sniffer.watch("home/guard", wire.place())
    heard = sniffer.prove("home/guard", patience=PATIENCE).heard
    assert heard, "there is a way from here on"
    reply = bytes(8)  # An echo reply to nobody's question: type, code and all else 0.
    raw = (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    def packets() -> int:
        table = wire.namespaces.call(HOP, lambda: Path("/proc/thread-self/net/dev").read_text())
        line = next(line for line in table.splitlines() if line.strip().startswith("tunA:"))
        return int(line.split()[2])

    def arrived(wanted: int) -> bool:
        return packets() >= wanted

    with sniffer._changed, wire.namespaces.call(SERVER, lambda: socket.socket(*raw)) as flood:
        (watch,) = sniffer._watches.values()
        for wanted in range(packets() + 1, packets() + 101):
            flood.sendto(reply, ("10.64.0.2", 0))
            _until(partial(arrived, wanted))
        sniffer._hear(watch.sock.fileno())
        assert watch.sock.recv(100), "some are left for the next turn"
    _until(lambda: sniffer.reading("home/guard").heard > heard)


def test_nothing_is_known_of_a_place_nobody_watches(sniffer: Sniffer) -> None:
    assert sniffer.reading("home/guard").sent == 0


def test_traffic_that_is_not_returned_is_asked_about_at_once(wire: Wire, sniffer: Sniffer) -> None:
    """A question a minute, so that only the counters can be the reason for more."""
    alarms: list[float] = []
    place = replace(wire.place(), interval=60.0)
    sniffer.watch("home/guard", place, lambda: alarms.append(clock.boot_seconds()))
    sniffer.prove("home/guard", patience=PATIENCE)

    def answered() -> bool:
        client.send(b"x")
        server.sendto(*server.recvfrom(16))
        return client.recv(16) == b"x"

    def passage() -> Passage:
        return sniffer.reading("home/guard").passage

    with wire.udp(SERVER) as server, wire.udp(HOP) as client:
        server.bind(("10.64.0.1", 7))
        client.connect(("10.64.0.1", 7))
        _until(lambda: answered() and passage().last_received > 0)
        assert passage().is_busy(clock.boot_seconds())
        for _ in range(50):
            answered()
        asked = sniffer.reading("home/guard").sent
        assert not alarms
        wire.set_up(SERVER, "net/ipv4/icmp_echo_ignore_all", "1")
        _until(lambda: bool(client.send(b"x") and alarms))
    reading = sniffer.reading("home/guard")
    assert reading.sent >= asked + 3
    assert passage().unreturned > 0


def test_loss_is_that_of_the_last_minutes(wire: Wire, sniffer: Sniffer) -> None:
    sniffer.watch("home/guard", wire.place())
    _until(lambda: sniffer.reading("home/guard").recent[1] >= 3)
    asked, heard = sniffer.reading("home/guard").recent
    assert heard <= asked <= heard + 1


def test_what_was_asked_before_the_tunnel_was_there_is_not_lost(
    wire: Wire, sniffer: Sniffer
) -> None:
    wire.server("ip link set far0 down")
    sniffer.watch("home/guard", wire.place())
    sniffer.prove("home/guard", patience=0.5)
    wire.server("ip link set far0 up")
    sniffer.prove("home/guard", patience=PATIENCE)
    _until(lambda: sniffer.reading("home/guard").recent[1] >= 3)
    reading = sniffer.reading("home/guard")
    asked, heard = reading.recent
    assert reading.sent > heard + 5
    assert asked <= heard + 1
    assert reading.behaviour.loss == 0


def _two_at_rest(wire: Wire, sniffer: Sniffer) -> None:
    """A chain of a guard and an exit that nobody uses."""
    far = wire.namespaces.path(SERVER)
    wire.hop(f"ip link add tunB type veth peer name far1 netns {far}")
    for command in ("ip address add 10.65.0.1/24 dev far1", "ip link set far1 up"):
        wire.server(command)
    for command in (
        "ip address add 10.65.0.2/32 dev tunB",
        "ip link set tunB up arp off",
        "ip route add 10.65.0.0/24 dev tunB",
    ):
        wire.hop(command)
    # A tunnel has neither ARP nor router solicitations, which look as if somebody used it.
    wire.set_up(HOP, "net/ipv6/conf/all/disable_ipv6", "1")
    known = {
        ("tunA", "far0"): ("10.64.0.1", "198.51.100.1", "10.64.0.2"),
        ("tunB", "far1"): ("10.65.0.1", "10.65.0.2"),
    }
    for (near, there), (*remote, own) in known.items():
        mac = wire.server(f"cat /sys/class/net/{there}/address").strip()
        for address in remote:
            wire.hop(f"ip neighbour replace {address} lladdr {mac} dev {near}")
        mac = wire.hop(f"cat /sys/class/net/{near}/address").strip()
        wire.server(f"ip neighbour replace {own} lladdr {mac} dev {there}")
    inner = replace(
        wire.place(IPv4Address("10.65.0.1")), link="tunB", address=IPv4Address("10.65.0.2")
    )
    sniffer.watch("U/guard", wire.place())
    sniffer.watch("U/exit", inner)
    sniffer.sweep(["U/guard", "U/exit"], patience=PATIENCE)
    sniffer.line_up("U/", ["U/guard", "U/exit"])
    # Until nobody takes the first questions, sent before anything was counted, for traffic.
    begun = clock.boot_seconds()
    _until(lambda: sniffer.reading("U/exit").passage.looked > begun + 1.0)
    _until(lambda: not sniffer.reading("U/exit").passage.is_busy(clock.boot_seconds()))


def test_the_hops_outside_are_asked_when_the_innermost_falls_silent(
    wire: Wire, sniffer: Sniffer
) -> None:
    _two_at_rest(wire, sniffer)
    asked, heard = sniffer.reading("U/guard").sent, sniffer.reading("U/exit").heard
    _until(lambda: sniffer.reading("U/exit").heard >= heard + 6)
    guard = sniffer.reading("U/guard")
    # Alone it would be asked as often as the exit. One that is late has it asked once more.
    assert guard.sent <= asked + 3
    assert clock.boot_seconds() - guard.last_heard < 2.0
    # Nor does the thread wake up for each answer because somebody wanted one.
    sniffer.sweep(["U/guard", "U/exit"], patience=PATIENCE)
    wait_until(lambda: not sniffer._hurried, seconds=3)
    guard = sniffer.reading("U/guard")
    with sniffer._changed:
        # Somebody wants to hear of it now, and an answer of the exit is taken first.
        watch, now = sniffer._watches["U/guard"], clock.boot_seconds()
        watch.due = now
        sniffer._spare(watch, now)
        assert watch.due == now
        # Its own pause began while somebody used the chain.
        watch.due = now + INTERVAL
        sniffer._hurried.add(watch.sock.fileno())
        sniffer._spare(watch, now)
        assert watch.due > now + 1.0
        assert not sniffer._hurried
    wire.server("ip link set far1 down")
    _until(lambda: sniffer.reading("U/guard").sent >= guard.sent + 3)
    _until(lambda: sniffer.reading("U/guard").answered > sniffer.reading("U/exit").silent_since > 0)


def test_the_hops_outside_are_asked_as_soon_as_somebody_uses_the_chain(
    wire: Wire, sniffer: Sniffer
) -> None:
    """One of them may be silent, which answers of the exit hide while nobody uses it."""
    _two_at_rest(wire, sniffer)
    guard, begun = sniffer._watches["U/guard"], clock.boot_seconds()
    with sniffer._changed:
        guard.due = begun + 1000.0
    with wire.udp(HOP) as sock:
        sock.sendto(b"hello", ("10.65.0.1", 9))
    _until(lambda: sniffer.reading("U/exit").passage.is_busy(clock.boot_seconds()))
    _until(lambda: guard.asked > begun)


def test_answers_nobody_waits_for_are_taken_later_and_are_no_slower(
    wire: Wire, sniffer: Sniffer
) -> None:
    """The kernel says when they came."""
    sniffer.watch("U/exit", wire.place())
    sniffer.prove("U/exit", patience=PATIENCE)
    sniffer.line_up("U/", ["U/exit"])
    ages: list[float] = []
    taken = sniffer._heard

    def note(watch: Any, sequence: int, age: float) -> None:
        ages.append(age)
        taken(watch, sequence, age)

    sniffer._heard = note  # type: ignore[method-assign]
    # It comes within a millisecond, and the thread sleeps for up to 50.
    _until(lambda: len([age for age in ages if age > 0.02]) >= 2)
    assert sniffer.reading("U/exit").behaviour.mean < 0.02
    begun = clock.boot_seconds()
    assert sniffer.prove("U/exit", patience=PATIENCE).answered >= begun


class Sheaf:
    """Many tunnels to one server, each with an address and counters of its own.

    A few to a namespace: a raw socket is looked at for each packet that comes into its own, and
    the counters of all links there are read together.
    """

    def __init__(self, pins: Path, namespaces: int, each: int) -> None:
        self.namespaces = Namespaces(pins)
        self.namespaces.create(SERVER, FORWARDING)
        self.places: list[Place] = []
        self._far: list[str] = []
        for number in range(namespaces):
            ns = NsName(f"U.hop{number}")
            self.namespaces.create(ns, {})
            self._tie(ns, [f"tun{number}x{place}" for place in range(each)])

    def _tie(self, ns: NsName, links: list[str]) -> None:
        near: list[str] = []
        far: list[str] = []
        # Without ARP a frame is sent to the sender's own address, so that both ends have the same.
        same = "address 02:00:00:00:00:01 arp off"
        for link in links:
            address = IPv4Address("10.65.0.0") + 2 * len(self.places)
            peer = self.namespaces.path(SERVER)
            near += [
                f"link add {link} {same} type veth peer name {link} {same} netns {peer}",
                f"address add {address}/31 dev {link}",
                f"link set {link} up",
                f"route add default dev {link} metric {len(near) + 1}",
            ]
            far += [f"address add {address + 1}/31 dev {link}", f"link set {link} up"]
            server = IPv4Address("198.51.100.1")
            self.places.append(Place(ns, link, address, address + 1, server, interval=30.0))
        self._configure(ns, near)
        self._configure(SERVER, far)
        self._far += links

    def close_server(self) -> None:
        self._configure(SERVER, [f"link set {link} down" for link in self._far])

    def _configure(self, ns: NsName, lines: list[str]) -> None:
        subprocess.run(
            ["nsenter", f"--net={self.namespaces.path(ns)}", "ip", "-batch", "-"],
            input="\n".join(lines),
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def close(self) -> None:
        for name in self.namespaces.names():
            self.namespaces.remove(name)
        self.namespaces.close()


@pytest.fixture
def sheaf(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sheaf]:
    sheaf = Sheaf(tmp_path / "pins", namespaces=request.param // 15, each=15)
    yield sheaf
    sheaf.close()


@pytest.mark.parametrize("sheaf", [300], indirect=True)
def test_many_hops_at_once_are_given_time_to_answer(sheaf: Sheaf) -> None:
    """To ask 600 hops again every 40 ms until the last has answered doubled what it took."""
    with closing(Sniffer(sheaf.namespaces)) as sniffer:
        _ask_many(sniffer, sheaf)


def _ask_many(sniffer: Sniffer, sheaf: Sheaf) -> None:
    keys = [f"c{number}/exit" for number in range(len(sheaf.places))]
    for key, place in zip(keys, sheaf.places, strict=True):
        sniffer.watch(key, place)
    begun = clock.boot_seconds()
    for _ in range(2):  # The first time also other questions are tried.
        before = {key: sniffer.reading(key).sent for key in keys}
        found = sniffer.sweep(keys, patience=PATIENCE)
        assert all(reading.answered > begun for reading in found.values())
    swept = clock.boot_seconds()
    _until(lambda: clock.boot_seconds() > swept + 0.5)
    assert sum(sniffer.reading(key).sent - before[key] for key in keys) < 1.5 * len(keys)
    sheaf.close_server()
    before = {key: sniffer.reading(key).sent for key in keys}
    # They have 0.3 s; every 40 ms would be six times.
    sniffer.sweep(keys, patience=0.25)
    asked = [sniffer.reading(key).sent - before[key] for key in keys]
    assert min(asked) >= 1
    assert sum(asked) < 2.2 * len(keys)
    assert not any(watch.slack for watch in sniffer._watches.values())


@pytest.mark.parametrize("sheaf", [600], indirect=True)
def test_a_fleet_at_rest(sheaf: Sheaf) -> None:
    """200 chains of three hops: every exit is asked before its gate shuts, by turns, and the hops
    outside it are spared.
    """
    with closing(Sniffer(sheaf.namespaces)) as sniffer:
        chains: list[list[str]] = []
        for first in range(0, len(sheaf.places), 3):
            keys = [f"c{first}/{hop}" for hop in ("guard", "middle", "exit")]
            for key, place in zip(keys, sheaf.places[first:], strict=False):
                sniffer.watch(key, replace(place, interval=INTERVAL))
            sniffer.line_up(f"c{first}/", keys)
            chains.append(keys)
        exits = [keys[-1] for keys in chains]
        outer = [key for keys in chains for key in keys[:-1]]
        asked = sniffer.sweep([*exits, *outer], patience=PATIENCE)
        assert all(reading.last_heard for reading in asked.values())
        # Once after the sweep each is asked where chance puts it.
        _ask_exits(sniffer, exits, times=2)
        before = {key: sniffer.reading(key).sent for key in outer}
        _ask_exits(sniffer, exits, times=2)
        with sniffer._changed:
            watches = [sniffer._watches[key] for key in exits]
            pauses = [watch.due - watch.asked for watch in watches]
            turns = Counter(round(watch.due, 3) for watch in watches)
        assert max(pauses) <= 3.0 < GATE_TIMEOUT
        assert min(pauses) > 1.9
        assert 2 <= len(turns) <= 4
        assert max(turns.values()) < 0.7 * len(exits)
        # Each of them every second minute, and not at each turn of its exit.
        assert sum(sniffer.reading(key).sent - before[key] for key in outer) < 0.3 * len(outer)


def _ask_exits(sniffer: Sniffer, keys: Sequence[str], *, times: int) -> None:
    """Wait until each has answered so often."""
    before = {key: sniffer.reading(key).heard for key in keys}
    _until(lambda: all(sniffer.reading(key).heard >= before[key] + times for key in keys))


def _stand_still(sniffer: Sniffer, seconds: float) -> None:
    """Whoever has this lock keeps the sniffer's thread from everything."""
    with sniffer._changed:
        begun = clock.boot_seconds()
        _until(lambda: clock.boot_seconds() >= begun + seconds)


def test_a_stall_of_this_machine_is_no_silence(wire: Wire, sniffer: Sniffer) -> None:
    """Nor does it make the hop slow, or use up anybody's patience with it."""
    sniffer.watch("home/guard", wire.place())
    sniffer.prove("home/guard", patience=PATIENCE)
    wire.server("ip link set far0 down")
    _until(lambda: sniffer.reading("home/guard").unanswered)
    begun, awake = clock.boot_seconds(), sniffer.awake_seconds()
    silence = begun - sniffer.reading("home/guard").silent_since
    _stand_still(sniffer, 3.0)
    reading, now = sniffer.reading("home/guard"), clock.boot_seconds()
    assert now - reading.silent_since < silence + (now - begun) / 2
    assert sniffer.awake_seconds() - awake < (now - begun) / 2
    assert not is_failing(reading, now)
    assert outermost_dead([reading], now) is None
    _until(lambda: is_failing(sniffer.reading("home/guard"), clock.boot_seconds()))


def test_an_answer_that_waited_for_this_machine_was_not_slow(wire: Wire, sniffer: Sniffer) -> None:
    sniffer.watch("home/guard", wire.place())

    def heard(wanted: int) -> bool:
        return sniffer.reading("home/guard").heard >= wanted

    _until(partial(heard, 3))
    for _ in range(5):
        with sniffer._changed:
            (watch,) = sniffer._watches.values()
            sniffer._ask(watch, None)
            wanted = watch.reading.heard + 1
            _stand_still(sniffer, 1.0)
        _until(partial(heard, wanted))
    assert sniffer.reading("home/guard").behaviour.mean < 0.2
