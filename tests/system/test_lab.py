"""The lab as its users have it: real namespaces, real servers, real kills."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chainctl.errors import MendFile, MendHost, RefusedByPolicy
from chainctl.lab import wireguard_go
from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab, Server
from chainctl.lab.layout import TARGET, LabSpec
from chainctl.lab.making import uapi_name
from chainctl.lab.state import HOMES, home_of
from chainctl.settings import Settings
from tests.waiting import wait_until

pytestmark = pytest.mark.root

ADDRESS = str(TARGET.ip)
MARK = "CHAINCTL_TEST_MARK"
CHAINCTL = [sys.executable, "-c", "from chainctl.cli.main import main; main()"]

ECHO = """
import json, socket, sys, time
address, sizes, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(0, 10, int(sys.argv[4]))  # IP_MTU_DISCOVER
s.connect((address, 7)); s.settimeout(seconds)
out = []
for size in sizes:
    begun = time.monotonic()
    try:
        s.send(bytes(size))
        line, _, rest = s.recv(65536).partition(b"\\n")
        out.append([line.split()[1].decode() if rest == bytes(size) else "garbled",
                    1000 * (time.monotonic() - begun)])
    except OSError as error:
        out.append([type(error).__name__ + str(error.errno or ""), 0])
print(json.dumps(out))
"""
DONT_FRAGMENT, MAY_FRAGMENT = 2, 0  # IP_PMTUDISC_DO, IP_PMTUDISC_DONT


def echo(
    lab: Lab, where: str, sizes: list[int], *, seconds: float = 2.0, pmtud: int = MAY_FRAGMENT
) -> list[tuple[str, float]]:
    """(source the target saw, or what went wrong; milliseconds) for each datagram."""
    argv = ["python3", "-I", "-c", ECHO, ADDRESS, json.dumps(sizes), str(seconds), str(pmtud)]
    done = lab.run(where, argv, timeout=seconds * len(sizes) + 10)
    assert done.returncode == 0, done.stderr
    return [(source, ms) for source, ms in json.loads(done.stdout)]


def refused_after(lab: Lab, server: Server, *, seconds: float = 2.0) -> float | None:
    """Milliseconds until a closed port of the server answers the host; None if it does not."""
    program = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[2])); s.connect((sys.argv[1], 9))
begun = time.monotonic(); s.send(b"x")
try: s.recv(1)
except ConnectionRefusedError: print(1000 * (time.monotonic() - begun))
except TimeoutError: pass
"""
    argv = ["python3", "-I", "-c", program, str(server.plan.uplink.ip), str(seconds)]
    done = lab.run("host", argv, timeout=seconds + 10)
    assert done.returncode == 0, done.stderr
    return float(done.stdout) if done.stdout else None


until = partial(wait_until, seconds=10.0)


@pytest.fixture(scope="session")
def engine() -> Path:
    return wireguard_go.find_wireguard_go(Settings.load().image_dir)


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a lab, of which nothing is left afterwards whatever the test did."""
    out = f"t-{secrets.token_hex(4)}"
    yield out
    remove(out)


@pytest.fixture(scope="module")
def lab(engine: Path) -> Iterator[Lab]:
    """One that tests only look at, or put back as it was."""
    with Lab.create(LabSpec(f"t-{secrets.token_hex(4)}"), wireguard_go=engine) as out:
        yield out


def traces(name: str, mark: str = "") -> list[str]:
    """What there is of a lab on this machine: namespaces, mounts, files, processes."""
    uapi = uapi_name(name, 0)[:-1]
    out = [str(path) for path in Path("/run/netns").glob(f"{name}.*")]
    out += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    out += [
        str(path)
        for folder in (HOMES, Path("/run/wireguard"))
        for path in folder.glob("*")
        if path.name.startswith((name, uapi))
    ]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text() + (process / "environ").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if uapi in words or (mark and mark in words):
            out.append(f"{process.name} {words[:80]!r}")
    return out


class TestAFreshLab:
    def test_it_comes_up_in_two_seconds(self, name: str, engine: Path) -> None:
        begun = time.monotonic()
        Lab.create(LabSpec(name), wireguard_go=engine)
        assert time.monotonic() - begun < 2

    def test_the_target_sees_the_hosts_own_address(self, lab: Lab) -> None:
        answers = lab.ask("host", resolver=ADDRESS)
        assert [answers[what]["source"] for what in ("web", "dns")] == ["192.0.2.2"] * 2
        sizes = [0, 1, 1472, 1473, 2000]
        assert [source for source, _ in echo(lab, "host", sizes)] == ["192.0.2.2"] * len(sizes)

    def test_every_server_reaches_the_target_from_its_own_address(self, lab: Lab) -> None:
        for server in lab.servers:
            assert echo(lab, server.name, [10])[0][0] == str(server.plan.uplink.ip)

    def test_the_client_has_no_way_out_but_the_chain(self, lab: Lab) -> None:
        answers = lab.ask("client", resolver="192.168.10.254", timeout=0.5)
        assert "error" in answers["web"]
        assert "error" in answers["dns"]

    def test_links_carry_at_once_and_ipv6_is_off(self, lab: Lab) -> None:
        for place in lab.layout.places:
            links = json.loads(lab.run(place.name, ["ip", "-j", "address"], timeout=5).stdout)
            ends = [end for cable in lab.layout.cables for end in (cable.a, cable.b)]
            wired = {end.link for end in ends if end.place == place.name}
            assert {link["operstate"] for link in links if link["ifname"] in wired} == {"UP"}
            assert "inet6" not in {a["family"] for link in links for a in link["addr_info"]}

    def test_no_link_is_in_the_machines_own_namespace(self, lab: Lab) -> None:
        indexes = {link for _, link in socket.if_nameindex()}
        assert not indexes & {end.link for c in lab.layout.cables for end in (c.a, c.b)} - {"eth0"}
        assert not any(link.startswith(uapi_name(lab.name, 0)[:-1]) for link in indexes)

    def test_programs_keep_their_pid_and_get_the_environment(self, lab: Lab) -> None:
        with lab.popen(
            "host", ["sh", "-c", "echo $$ $CHAINCTL_RUN_DIR"], stdout=subprocess.PIPE, text=True
        ) as process:
            out, _ = process.communicate(timeout=10)
        assert out.split() == [str(process.pid), str(lab.home / "run")]

    def test_another_one_of_that_name_is_refused(self, lab: Lab, engine: Path) -> None:
        with pytest.raises(MendHost) as caught:
            Lab.create(LabSpec(lab.name), wireguard_go=engine)
        assert caught.value.code == "C601"
        assert lab.ask("host", resolver=ADDRESS)["web"]["source"] == "192.0.2.2"

    def test_it_is_found_by_its_name(self, lab: Lab) -> None:
        found = Lab.load(lab.name)
        assert found.directory == lab.directory
        assert [server.pid for server in found.servers] == [server.pid for server in lab.servers]


class TestTheTarget:
    def test_it_survives_floods_and_clients_that_do_not_read(self, lab: Lab) -> None:
        program = """
import socket, sys
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); flood.connect((sys.argv[1], 7))
lazy = [socket.create_connection((sys.argv[1], 7)) for _ in range(20)]
for one in lazy:
    one.setblocking(False)
    try:
        while True: one.send(bytes(65536))
    except BlockingIOError: pass
for _ in range(5000): flood.send(bytes(2000))
rude = socket.create_connection((sys.argv[1], 80)); rude.send(b"GET"); rude.close()
rude = socket.create_connection((sys.argv[1], 80)); rude.send(bytes(200000))
print("done", flush=True); sys.stdin.read()
"""
        with lab.popen(
            "host",
            ["python3", "-I", "-c", program, ADDRESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as flood:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "done\n"
            answers = lab.ask("server1", resolver=ADDRESS)
            assert answers["web"]["source"] == answers["dns"]["source"] == "5.1.0.10"
            flood.communicate(timeout=10)


@contextmanager
def tunnel(lab: Lab, engine: Path, server: Server, *, mtu: int, to: list[str]) -> Iterator[str]:
    """A WireGuard client in the host's namespace with the file the provider gave us for
    device 2; its link's name."""
    link = f"l{secrets.token_hex(5)}"
    text = (lab.directory / "devices" / f"{server.name}-2.conf").read_text()
    address = re.findall(r"Address = ([0-9.]+/32)", text)[0]
    config = re.sub(r"(?m)^(Address|DNS|MTU) = .*\n", "", text)
    argv = [*wireguard_go.command(engine), "--foreground", link]
    environ = {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
    uapi = Path("/run/wireguard") / f"{link}.sock"
    with lab.popen("host", argv, env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            until(uapi.exists)
            until(lambda: lab.run("host", ["wg", "show", link], timeout=5).returncode == 0)
            done = lab.run("host", ["wg", "setconf", link, "/dev/stdin"], stdin=config, timeout=5)
            assert done.returncode == 0, done.stderr
            lines = [f"address add {address} dev {link}", f"link set {link} mtu {mtu} up"]
            lines += [f"route add {network} dev {link}" for network in to]
            batch = "\n".join(lines) + "\n"
            done = lab.run("host", ["ip", "-batch", "-"], stdin=batch, timeout=5)
            assert done.returncode == 0, done.stderr
            yield link
        finally:
            process.kill()
            process.wait()
            uapi.unlink(missing_ok=True)


class TestTheServers:
    def test_two_tunnels_nest_and_each_server_sees_its_neighbour(
        self, lab: Lab, engine: Path
    ) -> None:
        first, second = lab.server(1), lab.server(2)
        resolver = str(second.plan.tunnel.ip)
        with (
            tunnel(lab, engine, first, mtu=1420, to=[str(second.plan.uplink.ip)]),
            tunnel(lab, engine, second, mtu=1340, to=[ADDRESS, resolver]),
        ):
            answers = lab.ask("host", resolver=resolver)
            assert answers["web"]["source"] == "5.2.0.10"
            assert answers["dns"]["source"] == "5.2.0.10"
            assert {source for source, _ in echo(lab, "host", [1, 1300, 2000])} == {"5.2.0.10"}
            assert endpoints(first) == {"192.0.2.2"}
            assert endpoints(second) == {"5.1.0.10"}

    def test_a_late_datagram_does_not_hold_the_tuple_of_a_tunnel(self, lab: Lab) -> None:
        """Kept, it would move what comes out of a tunnel from that port to another."""
        assert refused_after(lab, lab.server(2)) is not None
        assert echo(lab, "server2", [10])[0][0] == "5.2.0.10"
        program = """
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket
with NFCTSocket() as conntrack:
    for flow in conntrack.dump():
        sender = flow.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_IP")
        print(sender.get_attr("CTA_IP_V4_SRC"))
"""
        done = lab.run("server2", [sys.executable, "-c", program], timeout=10)
        senders = set(done.stdout.split())
        assert "5.2.0.10" in senders, done.stderr
        assert "192.0.2.2" not in senders

    def test_a_profile_with_a_preshared_key_works(self, lab: Lab, engine: Path) -> None:
        with tunnel(lab, engine, lab.server(3), mtu=1412, to=[ADDRESS]):
            assert lab.ask("host", resolver=ADDRESS)["web"]["source"] == "5.3.0.10"

    def test_frozen_thawed_killed_restarted(self, lab: Lab, engine: Path) -> None:
        server = lab.server(4)
        with tunnel(lab, engine, server, mtu=1420, to=[ADDRESS]):
            assert echo(lab, "host", [10])[0][0] == "5.4.0.10"
            server.freeze()
            assert server.condition == "frozen"
            assert echo(lab, "host", [10], seconds=0.5)[0][0] == "TimeoutError"
            server.thaw()
            assert server.condition == "running"
            assert "5.4.0.10" in {source for source, _ in echo(lab, "host", [10] * 5)}
            before = server.pid
            server.kill()
            assert server.condition == "dead"
            assert refused_after(lab, server) is not None
            server.restart()
            assert server.condition == "running"
            assert server.pid != before
        with tunnel(lab, engine, server, mtu=1420, to=[ADDRESS]):
            assert echo(lab, "host", [10])[0][0] == "5.4.0.10"


def endpoints(server: Server) -> set[str]:
    """Where the server heard its clients."""
    link = uapi_name(server.lab.name, server.plan.number)
    out = server.lab.run(server.name, ["wg", "show", link, "endpoints"], timeout=5).stdout
    return set(re.findall(r"\t([0-9.]+):", out))


class TestTheBox:
    @pytest.fixture(autouse=True)
    def plain_afterwards(self, lab: Lab) -> Iterator[None]:
        yield
        for server in lab.servers:
            lab.set_delay(server.name, 0)
            lab.set_loss(server.name, 0)
            lab.set_one_way(server.name, False)

    def test_round_trips_take_what_was_asked(self, lab: Lab) -> None:
        def fastest(where: str) -> float:
            return min(ms for _, ms in echo(lab, where, [100] * 5))

        assert fastest("server2") < 20
        lab.set_delay(2, 60)
        lab.set_delay(3, 40)
        assert 60 <= fastest("server2") < 90
        assert 40 <= fastest("server3") < 70
        assert fastest("server1") < 20
        assert 60 <= (refused_after(lab, lab.server(2)) or 0) < 120
        lab.set_delay(2, 0)
        assert fastest("server2") < 20

    def test_a_share_is_lost(self, lab: Lab) -> None:
        lab.set_loss(1, 50)
        got = [source for source, _ in echo(lab, "server1", [10] * 100, seconds=0.05)]
        assert 10 <= got.count("5.1.0.10") <= 45  # a quarter: both ways
        lab.set_loss(1, 0)
        got = [source for source, _ in echo(lab, "server1", [10] * 100, seconds=0.5)]
        assert got.count("5.1.0.10") >= 99

    def test_a_mute_server_hears(self, lab: Lab) -> None:
        def heard() -> int:
            lines = lab.run("server5", ["cat", "/proc/net/snmp"], timeout=5).stdout.splitlines()
            names, numbers = (line.split() for line in lines if line.startswith("Icmp:"))
            return int(dict(zip(names, numbers, strict=True))["OutDestUnreachs"])

        lab.set_one_way(5, True)
        before = heard()
        assert refused_after(lab, lab.server(5), seconds=0.5) is None
        assert heard() == before + 1
        lab.set_one_way(5, False)
        assert refused_after(lab, lab.server(5)) is not None

    def test_twenty_thousand_packets_a_second(self, lab: Lab) -> None:
        """Sent at 20 000/s for a second; the box loses less than one in a hundred."""
        program = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 9))
begun = time.monotonic()
for burst in range(1000):
    while time.monotonic() < begun + burst / 1000: pass
    for _ in range(20):
        try: s.send(bytes(1000))
        except ConnectionRefusedError: pass
print(time.monotonic() - begun)
"""

        def received() -> int:
            lines = lab.run("target", ["cat", "/proc/net/snmp"], timeout=5).stdout.splitlines()
            return int([line for line in lines if line.startswith("Udp:")][1].split()[2])

        lab.set_delay(1, 10)
        before = received()
        argv = ["python3", "-I", "-c", program, ADDRESS]
        done = lab.run("server1", argv, timeout=30)
        assert done.returncode == 0, done.stderr
        until(lambda: received() - before >= 19_800)

    def test_it_may_die_and_comes_back(self, lab: Lab) -> None:
        lab.set_delay(1, 30)
        lab.state.processes["box"].kill()
        lab.set_delay(1, 40)
        assert 40 <= min(ms for _, ms in echo(lab, "server1", [10] * 3)) < 70


class TestTheWay:
    def test_the_uplink_goes_and_comes(self, name: str, engine: Path) -> None:
        for spec in (LabSpec(name, hops=1, spares=0), LabSpec(name, 1, 0, path_mtu=1492)):
            with Lab.create(spec, wireguard_go=engine) as lab:
                lab.set_uplink(False)
                assert "error" in lab.ask("host", resolver=ADDRESS, timeout=0.3)["web"]
                lab.set_uplink(True)
                until(lambda: "source" in lab.ask("host", resolver=ADDRESS)["web"])

    @pytest.mark.parametrize("icmp", [True, False])
    def test_a_modem_is_narrower_than_the_host_knows(
        self, name: str, engine: Path, icmp: bool
    ) -> None:
        spec = LabSpec(name, hops=1, spares=0, path_mtu=1492, icmp=icmp)
        with Lab.create(spec, wireguard_go=engine) as lab:
            assert echo(lab, "host", [2000])[0][0] == "192.0.2.2"
            # 1436 + the line with the source come back in 1492 bytes; 1466 + 28 do not go.
            got = echo(lab, "host", [1436, 1466, 1466], seconds=0.5, pmtud=DONT_FRAGMENT)
            assert got[0][0] == "192.0.2.2"
            told = "OSError90"  # EMSGSIZE
            assert [what for what, _ in got[1:]].count(told) == (2 if icmp else 0)

    def test_the_uplink_itself_is_narrow(self, name: str, engine: Path) -> None:
        spec = LabSpec(name, hops=1, spares=0, wan_mtu=1492)
        with Lab.create(spec, wireguard_go=engine) as lab:
            got = echo(lab, "host", [1466, 1436], pmtud=DONT_FRAGMENT)
            assert [what for what, _ in got] == ["OSError90", "192.0.2.2"]

    @pytest.mark.parametrize("offload", [True, False])
    def test_frames_are_packets_when_asked(self, name: str, engine: Path, offload: bool) -> None:
        watcher = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind(("eth0", 0))
s.setsockopt(1, 33, 64 << 20)  # SO_RCVBUFFORCE
s.settimeout(10); print("ready", flush=True); longest = seen = 0
while seen < 3_000_000 and longest <= 1514:
    size = s.recv_into(bytearray(1 << 17)); longest = max(longest, size); seen += size
print(longest)
"""
        sender = """
import socket, sys, threading
s = socket.create_connection((sys.argv[1], 7))
def drain():
    while s.recv(1 << 16): pass
threading.Thread(target=drain, daemon=True).start(); s.sendall(bytes(6_000_000))
"""
        spec = LabSpec(name, hops=1, spares=0, offload=offload)
        with (
            Lab.create(spec, wireguard_go=engine) as lab,
            lab.popen(
                "target",
                ["python3", "-I", "-c", watcher],
                stdout=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            lab.run("host", ["python3", "-I", "-c", sender, ADDRESS], timeout=30)
            longest = int(process.communicate(timeout=20)[0])
        assert (longest > 1514) == offload

    def test_several_clients_share_the_lan(self, name: str, engine: Path) -> None:
        server = """
import socket
s = socket.create_server(("192.168.10.51", 7000)); print("ready", flush=True)
s.settimeout(10); print(s.accept()[1][0])
"""
        client = 'import socket; socket.create_connection(("192.168.10.51", 7000), 5)'
        with (
            Lab.create(LabSpec(name, 1, 0, clients=3), wireguard_go=engine) as lab,
            lab.popen(
                "client2", ["python3", "-I", "-c", server], stdout=subprocess.PIPE, text=True
            ) as process,
        ):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            done = lab.run("client3", ["python3", "-I", "-c", client], timeout=10)
            assert done.returncode == 0, done.stderr
            assert process.communicate(timeout=10)[0] == "192.168.10.52\n"


class TestTwoLabs:
    def test_they_do_not_meet(self, name: str, engine: Path) -> None:
        with (
            Lab.create(LabSpec(f"{name}-a", 1, 0), wireguard_go=engine) as one,
            Lab.create(LabSpec(f"{name}-b", 1, 0), wireguard_go=engine) as other,
        ):
            one.state.processes["target"].kill()
            assert "error" in one.ask("host", resolver=ADDRESS, timeout=0.5)["web"]
            assert other.ask("host", resolver=ADDRESS)["web"]["source"] == "192.0.2.2"
            one.down()
            assert not traces(one.name)
            assert other.ask("host", resolver=ADDRESS)["web"]["source"] == "192.0.2.2"
            assert other.server(1).condition == "running"


class TestTakingDown:
    def test_nothing_is_left(self, name: str, engine: Path, tmp_path: Path) -> None:
        lab = Lab.create(LabSpec(name, rtt_ms=5), tmp_path / "mine", wireguard_go=engine)
        assert traces(name)
        lab.down()
        assert not traces(name)
        assert list(tmp_path.iterdir()) == []
        assert not remove(name)
        lab.down()
        assert not traces(name)

    def test_what_the_user_put_there_stays(self, name: str, engine: Path, tmp_path: Path) -> None:
        lab = Lab.create(LabSpec(name, 1, 0), tmp_path / "mine", wireguard_go=engine)
        note = lab.directory / "profiles" / "note"
        note.write_text("mine")
        lab.down()
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [note]

    def test_files_that_are_there_are_not_overwritten(
        self, name: str, engine: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "chain.yaml").write_text("mine")
        with pytest.raises(RefusedByPolicy) as caught:
            Lab.create(LabSpec(name), tmp_path, wireguard_go=engine)
        assert caught.value.code == "C609"
        assert not traces(name)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
            ("chain.yaml", "mine")
        ]

    def test_pins_and_processes_of_a_supervisor_inside_go_too(
        self, name: str, engine: Path
    ) -> None:
        lab = Lab.create(LabSpec(name, 1, 0), wireguard_go=engine)
        pin = lab.home / "run" / "pin"
        pin.touch()
        argv = ["unshare", f"--net={pin}", "sh", "-c", "echo in; exec sleep 600"]
        with lab.popen("host", argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            lab.down()
            assert process.wait(timeout=5) == -9
        assert not traces(name)

    def test_a_wireguard_go_that_fails_leaves_nothing(self, name: str, tmp_path: Path) -> None:
        broken = tmp_path / "wireguard-go"
        broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
        broken.chmod(0o755)
        with pytest.raises(MendHost, match=r"\[C606\] server1 did not start: no such luck"):
            Lab.create(LabSpec(name, 1, 0), wireguard_go=broken)
        assert not traces(name)

    def test_not_from_the_inside(self, lab: Lab) -> None:
        done = lab.run("host", [*CHAINCTL, "lab", "down", lab.name], timeout=10)
        assert done.returncode == RefusedByPolicy.exit_status
        assert "[C607]" in done.stderr
        assert lab.server(1).condition == "running"


class TestKilledAnywhere:
    def up(self, name: str, engine: Path, mark: str) -> subprocess.Popen[str]:
        argv = [*CHAINCTL, "lab", "up", name, "--rtt", "5", "--wireguard-go", str(engine)]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, text=True, env={**os.environ, MARK: mark}
        )

    @pytest.mark.parametrize("step", ["files", "places", "servers", "lines"])
    def test_after_each_step(self, name: str, engine: Path, step: str) -> None:
        mark = secrets.token_hex(8)
        with self.up(name, engine, mark) as process:
            assert process.stdout is not None
            assert any(step in line for line in process.stdout)
            process.kill()
        assert traces(name, mark)
        remove(name)
        assert not traces(name, mark)

    def test_at_any_moment(self, name: str, engine: Path) -> None:
        mark = secrets.token_hex(8)
        begun = time.monotonic()
        with self.up(name, engine, mark) as process:
            assert process.wait(timeout=30) == 0
        whole = time.monotonic() - begun
        remove(name)
        chance = random.Random(4)
        for moment in [0.3 * whole + 0.7 * whole * chance.random() for _ in range(12)]:
            with self.up(name, engine, mark) as process:
                with ExitStack() as stack:
                    stack.enter_context(pytest.raises(subprocess.TimeoutExpired))
                    process.wait(timeout=moment)
                    stack.pop_all()
                process.kill()
            remove(name)
            assert not traces(name, mark)

    def test_while_a_program_works_for_it(
        self, name: str, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would make the first namespace after everything was cleared away."""
        began, go = tmp_path / "began", tmp_path / "go"
        os.mkfifo(go)
        slow = tmp_path / "bin" / "ip"
        slow.parent.mkdir()
        ip = shutil.which("ip")
        slow.write_text(f'#!/bin/sh\ntouch {began}\nread line < {go}\nexec {ip} "$@"\n')
        slow.chmod(0o755)
        mark = secrets.token_hex(8)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
            process = self.up(name, engine, mark)
        with process:
            until(began.exists)
            process.kill()
        assert traces(name, mark)
        remove(name)
        assert not traces(name, mark)

    def test_up_again_clears_what_a_killed_one_left(self, name: str, engine: Path) -> None:
        mark = secrets.token_hex(8)
        with self.up(name, engine, mark) as process:
            assert process.stdout is not None
            assert any("places" in line for line in process.stdout)
            process.kill()
        with Lab.create(LabSpec(name), wireguard_go=engine) as lab:
            assert lab.ask("host", resolver=ADDRESS)["web"]["source"] == "192.0.2.2"
        assert not traces(name, mark)

    def test_while_it_is_taken_down(self, name: str, engine: Path) -> None:
        mark = secrets.token_hex(8)
        chance = random.Random(5)
        for _ in range(5):
            with self.up(name, engine, mark) as process:
                assert process.wait(timeout=30) == 0
            with subprocess.Popen([*CHAINCTL, "lab", "down", name], text=True) as process:
                try:
                    process.wait(timeout=0.1 + 0.1 * chance.random())
                except subprocess.TimeoutExpired:
                    process.kill()
            remove(name)
            assert not traces(name, mark)

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"spec": 1}'])
    def test_when_its_state_is_damaged(self, name: str, engine: Path, text: str) -> None:
        Lab.create(LabSpec(name, 1, 0), wireguard_go=engine)
        (home_of(name) / "state.json").write_text(text)
        with pytest.raises(MendFile) as caught:
            Lab.load(name)
        assert (caught.value.code, caught.value.hint) == ("C610", f"chainctl lab down {name}")
        assert remove(name)
        assert not traces(name)

    def test_when_its_state_is_lost(self, name: str, engine: Path) -> None:
        mark = secrets.token_hex(8)
        with self.up(name, engine, mark) as process:
            assert process.wait(timeout=30) == 0
        shutil.rmtree(home_of(name))
        assert remove(name)
        assert not traces(name, mark)


class TestTheCommands:
    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CHAINCTL, "lab", *words], capture_output=True, text=True, timeout=60, check=False
        )

    def test_run_exits_as_the_command_did(self, lab: Lab) -> None:
        done = self.call("run", "--on", "host", lab.name, "--", "sh", "-c", "echo hi; exit 7")
        assert (done.returncode, done.stdout) == (7, "hi\n")
        done = self.call("run", lab.name, "--", "sh", "-c", "kill -9 $$")
        assert done.returncode == 137
        done = self.call("run", lab.name)
        assert done.returncode == 2
        assert "put the command after --" in done.stderr

    def test_status(self, lab: Lab) -> None:
        facts = json.loads(self.call("status", "--json", lab.name).stdout)
        assert facts["complete"] is True
        assert facts["servers"][2]["endpoint"] == "5.3.0.10:51823"
        assert {server["condition"] for server in facts["servers"]} == {"running"}
        assert "nl-ams-02" in self.call("status", lab.name).stdout

    def test_ask(self, lab: Lab) -> None:
        done = self.call("ask", lab.name, "--on", "server2", "--json")
        answers: dict[str, Any] = json.loads(done.stdout)
        assert answers["web"]["source"] == answers["dns"]["source"] == "5.2.0.10"
        assert self.call("ask", lab.name, "--on", "host").stdout.count("sees 192.0.2.2") == 2

    def test_breaking_and_mending(self, lab: Lab) -> None:
        for words, wanted in [
            (["delay", "server1", "80ms"], "80 ms"),
            (["loss", "server1", "12%"], "12 % lost"),
            (["server", "server1", "mute"], "mute"),
            (["server", "server1", "freeze"], "frozen"),
        ]:
            assert self.call(*words, "--lab", lab.name).returncode == 0
            assert wanted in self.call("status", lab.name).stdout
        for words in [
            ["delay", "server1", "0"],
            ["loss", "server1", "0"],
            ["server", "server1", "unmute"],
            ["server", "server1", "thaw"],
        ]:
            assert self.call(*words, "--lab", lab.name).returncode == 0
        assert lab.server(1).condition == "running"
        assert lab.server(1).line.plain

    @pytest.mark.parametrize(
        ("words", "status", "code"),
        [
            (["status", "t-none"], 2, "C602"),
            (["run", "t-none", "--", "id"], 2, "C602"),
            (["delay", "server1", "5", "--lab", "t-none"], 2, "C602"),
            (["up", "No", "--wireguard-go", "/bin/true"], 2, "C604"),
            (["down", "../etc"], 2, "C604"),
        ],
    )
    def test_errors(self, words: list[str], status: int, code: str) -> None:
        done = self.call(*words)
        assert done.returncode == status
        assert f"[{code}]" in done.stderr
        assert not home_of("t-none").exists()

    def test_a_server_that_is_not_there(self, lab: Lab) -> None:
        done = self.call("delay", "server9", "5", "--lab", lab.name)
        assert done.returncode == 2
        assert "[C603]" in done.stderr


def test_an_empty_image_folder_says_how_to_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MendHost) as caught:
        wireguard_go.find_wireguard_go(tmp_path)
    assert caught.value.code == "C605"
    assert caught.value.hint == "chainctl images build"


def test_a_lab_that_is_not_there_gets_no_home() -> None:
    with pytest.raises(MendFile):
        Lab.load("t-none")
    assert not home_of("t-none").exists()
