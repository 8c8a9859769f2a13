"""wireguard-go under runc: what it can do, what it cannot, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from chainctl.errors import ChainctlError, ChangeServer, MendHost
from chainctl.host.netns import Namespaces
from chainctl.images.image import Image, ensure_image
from chainctl.images.lock import ImageKind
from chainctl.model.wireguard import WireGuardConfig
from chainctl.runtime import mounts
from chainctl.runtime.bundle import MEMORY_LIMIT, PIDS_LIMIT, ClientSpec
from chainctl.runtime.runc import Clients
from chainctl.runtime.wireguard import WireGuardStatus
from chainctl.runtime.wireguard_go import WireGuardGo
from chainctl.runtime.wireguard_kernel import create_device, kernel_wireguard_available
from chainctl.settings import Settings
from tests.kernel.client_rig import (
    MTU,
    OTHER,
    PATIENCE,
    UIDS,
    Rig,
    configs,
    enter,
    session_is_made_anew,
    session_outlives_the_same_configuration,
    status_of,
    udp_echo,
)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def image() -> Image:
    return ensure_image(ImageKind.WIREGUARD, Settings.load())


@pytest.fixture
def rig(tmp_path: Path, image: Image) -> Iterator[Rig]:
    settings = Settings(run_dir=tmp_path / "run")
    rig = Rig(settings, Namespaces(settings.netns_dir), Clients(settings), image)
    try:
        rig.build()
        yield rig
    finally:
        rig.destroy()


def eventually(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        select.select([], [], [], 0.01)


def start_both(
    rig: Rig, wanted: Mapping[str, WireGuardConfig] | None = None
) -> dict[str, WireGuardGo]:
    wanted = wanted or configs()
    devices = {}
    for side in OTHER:
        spec = rig.spec(side)
        rig.clients.start(spec)
        devices[side] = WireGuardGo(rig.clients.control_socket(spec))
        devices[side].configure(wanted[side])
        assert devices[side].read().digest == wanted[side].digest
    return devices


# That it works.


def test_two_clients_shake_hands_and_carry_packets(rig: Rig) -> None:
    devices = start_both(rig)
    assert udp_echo(rig)
    for side in OTHER:
        status: WireGuardStatus = devices[side].read()
        assert status.handshake is not None
        assert abs(status.handshake - time.time()) < 60
        assert min(status.received, status.sent) >= 92  # One message of the handshake.


def test_a_session_lives_on_when_the_same_configuration_is_set_again(rig: Rig) -> None:
    wanted = configs()
    session_outlives_the_same_configuration(rig, start_both(rig, wanted)["left"], wanted["left"])


def test_a_session_is_made_anew_on_demand(rig: Rig) -> None:
    wanted = configs()
    session_is_made_anew(rig, start_both(rig, wanted)["left"], wanted["left"])


def test_a_link_that_was_down_loses_nothing(rig: Rig) -> None:
    devices = start_both(rig)
    before = devices["left"].read().digest
    for state in ("down", "up", "down", "up"):
        enter(str(rig.namespaces.path("left")), f"ip link set tunA {state}")
    assert udp_echo(rig)
    assert devices["left"].read().digest == before


def test_another_server_replaces_the_one_before(rig: Rig) -> None:
    rig.clients.start(rig.spec())
    device = WireGuardGo(rig.clients.control_socket(rig.spec()))
    for config in (configs()["left"], configs()["left"]):
        device.configure(config)
        assert device.read().digest == config.digest


def test_starting_it_again_leaves_it_alone(rig: Rig) -> None:
    pid = rig.clients.start(rig.spec())
    assert rig.clients.start(rig.spec()) == pid
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: rig.clients.start(rig.spec()), range(4))) == {pid}


def test_one_that_should_be_different_is_replaced(rig: Rig) -> None:
    pid = rig.clients.start(rig.spec())
    other = replace(rig.spec(), env=("WG_PROCESS_FOREGROUND=1",))
    assert rig.clients.start(other) != pid


def test_one_in_a_namespace_that_was_made_anew_is_replaced(rig: Rig) -> None:
    pid = rig.clients.start(rig.spec())
    for side in OTHER:
        rig.remove_namespace(side)
    rig.build()
    again = rig.clients.start(rig.spec())
    assert again != pid
    running = rig.clients.observe()["rig.left"]
    assert running is not None
    assert running.netns_inode == rig.namespaces.inode("left")


def test_what_runs_is_seen(rig: Rig) -> None:
    pid = rig.clients.start(rig.spec())
    (running,) = rig.clients.observe().values()
    assert running is not None
    assert (running.pid, running.uid, running.link) == (pid, UIDS["left"], "tunA")
    assert running.image == rig.image.digest
    assert running.netns_inode == rig.namespaces.inode("left")


def test_its_end_is_noticed(rig: Rig) -> None:
    pid = rig.clients.start(rig.spec())
    handle = rig.clients.watch("rig.left")
    assert handle is not None
    try:
        assert not select.select([handle], [], [], 0)[0]
        os.kill(pid, signal.SIGKILL)
        assert select.select([handle], [], [], PATIENCE)[0]
    finally:
        os.close(handle)
    assert rig.clients.observe() == {"rig.left": None}
    assert rig.clients.watch("rig.left") is None
    assert rig.clients.start(rig.spec()) != pid


def test_stopping_leaves_nothing_and_may_be_repeated(rig: Rig) -> None:
    start_both(rig)
    assert list(rig.clients.observe("rig.l")) == ["rig.left"]
    for side in (*OTHER, *OTHER):
        rig.clients.stop(f"rig.{side}")
    assert rig.rests() == []


def test_many_start_and_stop_at_once(rig: Rig) -> None:
    def cycle(index: int) -> None:
        name = f"many.{index % 4}"
        rig.clients.start(
            replace(rig.spec(name=name), link="tunA")
            if index % 4 == 0
            else replace(rig.spec("right", name=name), link="tunA")
        )
        rig.clients.stop(name)

    def safely(index: int) -> None:
        # Two of them want one TUN: one of the errors of `start` is right, hanging is not.
        with contextlib.suppress(MendHost):
            cycle(index)
        rig.clients.stop(f"many.{index % 4}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(safely, range(16)))
    assert rig.rests() == []


# That it can do nothing else.


def inode(path: str) -> int:
    return Path(path).stat().st_ino


def test_it_has_no_rights(rig: Rig) -> None:
    pid = rig.clients.start(rig.spec())
    status = status_of(pid)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    uid = str(UIDS["left"])
    assert status["Uid"].split() == status["Gid"].split() == [uid] * 4
    assert {*status["Groups"].split()} <= {uid}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for kind in ("pid", "ipc", "uts", "mnt", "cgroup", "net"):
        assert inode(f"/proc/{pid}/ns/{kind}") != inode(f"/proc/self/ns/{kind}")


def test_it_holds_nothing_of_the_host(rig: Rig) -> None:
    """No descriptor of a directory above all: a lock of ours, or one that runc forgot."""
    pid = rig.clients.start(rig.spec())
    log = str(rig.settings.run_dir / "clients/rig.left/fs/log")
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # Closed while one looks.
            held.add(str(descriptor.readlink()))
    files = {name for name in held if name.startswith("/")}
    assert files == {"/dev/null", "/dev/net/tun", log}


def test_it_is_limited(rig: Rig) -> None:
    pid = rig.clients.start(rig.spec())
    limits = set()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, group = line.split(":")
        for root in Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup") / names:
            for file in ("memory.limit_in_bytes", "memory.max", "pids.max"):
                with contextlib.suppress(FileNotFoundError):
                    limits.add(int((root / group.strip("/") / file).read_text()))
    assert limits == {MEMORY_LIMIT, PIDS_LIMIT}
    assert Path(f"/proc/{pid}/cgroup").read_text() != Path("/proc/self/cgroup").read_text()


def shares_of_all(pid: int) -> int:
    """CPU time of the group that all clients are in, in parts of what a new group has."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, group = line.split(":")
        for root in Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup") / names:
            for file, each in (("cpu.shares", 1024), ("cpu.weight", 100)):
                with contextlib.suppress(FileNotFoundError):
                    above = (root / group.strip("/")).parent / file
                    return int(above.read_text()) // each
    pytest.fail("no group of the cpu controller")


def test_together_they_get_as_much_time_as_side_by_side(rig: Rig) -> None:
    left, right = rig.spec("left"), rig.spec("right")
    pid = rig.clients.start(left)
    assert shares_of_all(pid) == 1
    rig.clients.start(right)
    assert shares_of_all(pid) == 2
    rig.clients.stop(right.name)
    assert shares_of_all(pid) == 1


@pytest.fixture(scope="module")
def intruder(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Path:
    """The image with an attacker's program in the place of wireguard-go."""
    root = tmp_path_factory.mktemp("intruder") / "rootfs"
    shutil.copytree(image.root, root, symlinks=True)
    source = Path(__file__).with_name("intruder.c")
    program = root / "usr/bin/wireguard-go"
    subprocess.run(
        ["gcc", "-static", "-Wall", "-Werror", "-o", str(program), str(source)], check=True
    )
    return root


INTRUDER = "0" * 64
"""Stands for the digest of a root that was tampered with."""


def attempts(rig: Rig, spec: ClientSpec) -> dict[str, str]:
    rig.clients.start(spec)
    eventually(lambda: "set-flags" in rig.clients.read_log(spec.name))
    lines = rig.clients.read_log(spec.name).splitlines()
    return dict(line.split() for line in lines)


def test_an_attacker_inside_gets_nowhere(rig: Rig, intruder: Path) -> None:
    pin = str(rig.namespaces.path("left"))
    got = attempts(rig, replace(rig.spec(), root=intruder, image=INTRUDER))
    assert got.pop("set-mtu") == "ok"  # It is told so; the next line shows that it is not.
    assert f"mtu {MTU}" in enter(pin, "ip link show tunA")
    assert {name for name, result in got.items() if result == "ok"} == rig.allowed
    assert got["clone3"] == "ENOSYS"
    assert got["inet6"] == "EAFNOSUPPORT"
    assert got["write-root"] == "EROFS"
    assert got["write-dev"] in ("EROFS", "EACCES")
    assert got["exec-written"] == "EACCES"
    assert got["tun-other-slot"] == got["tun-new"] == "EPERM"
    for name in ("unshare-user", "unshare-net", "clone-user", "packet", "vsock", "setns"):
        assert got[name] == "EPERM"


# That nothing of it stays, whoever is killed and when.


def test_output_and_files_are_bounded_and_the_client_lives_on(rig: Rig) -> None:
    start_both(rig)
    spec = rig.spec()
    door = rig.clients.control_socket(spec)
    log = door.parent.parent / "log"
    with (door.parent / "ballast").open("wb", buffering=0) as ballast:
        with contextlib.suppress(OSError):
            for _ in range(2 * mounts.SIZE // 65536):
                ballast.write(bytes(65536))
        ballast.truncate(ballast.tell() - 8192)
    sizes = [-1, log.stat().st_size]
    while sizes[-1] != sizes[-2]:
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as connection:
                folder = os.open(door.parent, os.O_PATH)
                connection.connect(f"/proc/self/fd/{folder}/{door.name}")
                os.close(folder)
                connection.sendall(b"set=1\nnonsense=1\n\n")
                connection.recv(100)
        sizes.append(log.stat().st_size)
    usage = shutil.disk_usage(door.parent)
    assert usage.total == mounts.SIZE
    assert sizes[-1] > 1000
    assert udp_echo(rig)


def test_it_survives_who_started_it(rig: Rig) -> None:
    child = starter(rig)
    assert child.wait(PATIENCE) == 0
    pid = rig.clients.start(rig.spec())
    assert f"{pid}\n" == child.communicate()[0]
    assert status_of(pid)["PPid"] != str(child.pid)


STARTER = """
import sys
from pathlib import Path
from chainctl.runtime.bundle import wireguard_client
from chainctl.runtime.runc import Clients
from chainctl.runtime.wireguard_kernel import create_device, kernel_wireguard_available
from chainctl.settings import Settings
name, run, netns, uid, digest, root = sys.argv[1:]
spec = wireguard_client(name, netns=Path(netns), link="tunA", uid=int(uid), image=digest,
                        root=Path(root), program="/usr/bin/wireguard-go")
print("ready", flush=True, file=sys.stderr)
sys.stdin.readline()
print(Clients(Settings(run_dir=Path(run))).start(spec))
"""


def starter(rig: Rig) -> subprocess.Popen[str]:
    """A process that starts the client on the left."""
    spec = rig.spec()
    words = (spec.name, rig.settings.run_dir, spec.netns, spec.uid, spec.image, spec.root)
    child = subprocess.Popen(
        [sys.executable, "-c", STARTER, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin
    assert child.stderr
    assert child.stderr.readline() == "ready\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    return child


def kill_runc(rig: Rig) -> None:
    """Every runc of this rig, also those that are about to become the client."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if b"runc" in words[0] and str(rig.settings.run_dir).encode() in b" ".join(words):
                os.kill(int(place.name), signal.SIGKILL)


@pytest.mark.parametrize("also_runc", [False, True], ids=["supervisor", "runc too"])
def test_killed_at_any_moment_leaves_only_what_stop_cleans_up(rig: Rig, also_runc: bool) -> None:
    for moment in range(0, 100, 4):
        child = starter(rig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(moment / 1000)
        child.kill()
        if also_runc:
            kill_runc(rig)
        child.communicate()
        rig.clients.stop("rig.left")
        assert rig.rests() == [], f"killed after {moment} ms"


def test_killed_at_any_moment_can_be_started_again(rig: Rig) -> None:
    for moment in range(0, 100, 7):
        child = starter(rig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(moment / 1000)
        child.kill()
        kill_runc(rig)
        child.communicate()
        rig.clients.start(rig.spec())
        running = rig.clients.observe()["rig.left"]
        assert running is not None
        assert status_of(running.pid)["Name"] == "wireguard-go"
        rig.clients.stop("rig.left")


def test_a_container_that_was_made_and_never_started_is_no_client(rig: Rig) -> None:
    """Its process waits for ever, maybe with the lock that runc was given."""
    rig.clients.start(rig.spec())
    rig.clients.stop("rig.left")
    pid = half_start(rig)
    assert rig.clients.observe() == {"rig.left": None}
    assert status_of(pid)["Name"].startswith("runc")
    started = rig.clients.start(rig.spec())
    assert started != pid
    rig.clients.stop("rig.left")
    assert rig.rests() == []


def half_start(rig: Rig) -> int:
    """What a runc leaves that is killed between `create` and `start`."""
    clients, spec = rig.clients, rig.spec()
    assert isinstance(clients, Clients)
    with clients._only_one(spec.name):
        clients._prepare(spec, clients._render(spec))
    folder = rig.settings.run_dir / "clients" / spec.name
    with (folder / "runc.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [
                *("runc", "--root", str(rig.settings.run_dir / "runc"), "create"),
                *("--bundle", str(folder / "fs"), "--pid-file", str(folder / "fs/pid"), spec.name),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(lock.fileno(),),
        )
    return int((folder / "fs/pid").read_text())


# What a person is told.


def test_a_client_that_cannot_start_says_why_and_leaves_nothing(rig: Rig) -> None:
    with pytest.raises(MendHost) as caught:
        rig.clients.start(replace(rig.spec(), argv=("/usr/bin/wireguard-go", "tunB")))
    assert caught.value.code == "C543"
    assert "operation not permitted" in caught.value.message
    rig.clients.stop("rig.left")
    assert rig.rests() == []


def test_words_of_runc_are_handed_on(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(MendHost) as caught:
        rig.clients.start(replace(rig.spec(), argv=("/usr/bin/nothing",)))
    assert caught.value.code == "C542"
    assert "/usr/bin/nothing" in caught.value.message


def test_a_kernel_without_wireguard_is_seen_and_says_so(rig: Rig) -> None:
    if kernel_wireguard_available():
        pytest.skip("this kernel has it; tests/vm/test_kernel_wireguard.py is about that")
    with pytest.raises(MendHost, match="not supported") as caught:
        rig.namespaces.call("left", lambda: create_device("wg0", MTU))
    assert caught.value.code == "C552"


def test_without_usable_cgroups_nothing_is_started(rig: Rig) -> None:
    """The only place to take them away is a mount namespace of its own."""
    words = (
        f"from pathlib import Path; from chainctl.runtime.runc import Clients;"
        f"from chainctl.settings import Settings;"
        f"Clients(Settings(run_dir=Path({str(rig.settings.run_dir)!r}))).stop('rig.left')"
    )
    script = f'umount --recursive --lazy /sys/fs/cgroup && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, words], capture_output=True, text=True
    )
    assert "[C541]" in done.stderr


def test_a_configuration_that_is_refused_is_the_servers_fault(rig: Rig) -> None:
    rig.clients.start(rig.spec())
    device = WireGuardGo(rig.clients.control_socket(rig.spec()))
    with pytest.raises(ChangeServer):
        device._ask(["set=1", "listen_port=70000"])
    assert device.read().digest is None


def test_a_name_that_is_none_is_refused(rig: Rig) -> None:
    for name in ("", "../up", "a/b", "A"):
        with pytest.raises(ValueError, match="no name for a client"):
            rig.clients.start(replace(rig.spec(), name=name))
    assert issubclass(MendHost, ChainctlError)
