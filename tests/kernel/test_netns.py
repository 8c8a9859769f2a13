"""Namespaces: owned by somebody else, settled before they are seen, gone without a trace."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chainctl.errors import MendHost
from chainctl.host import descriptors, nft, sysctl
from chainctl.host.netns import FORWARDING, SETTINGS, Namespaces
from chainctl.net import rtnl

pytestmark = pytest.mark.root

_NS_GET_USERNS = 0xB701
_SIOCSIFFLAGS = 0x8914
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CRASHES = Path(__file__).with_name("crash_netns.py")


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Namespaces]:
    with Namespaces(tmp_path / "pins") as namespaces:
        yield namespaces
        for name in namespaces.names():
            namespaces.remove(name)


def _here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def _owner(namespace: Path) -> int:
    """The inode of the user namespace that owns a network namespace."""
    with namespace.open() as file:
        owner = fcntl.ioctl(file, _NS_GET_USERNS)
    try:
        return os.fstat(owner).st_ino
    finally:
        os.close(owner)


def _unshared(flags: int, work: Callable[[], None]) -> None:
    """Run `work` on a thread (or, for user namespaces, in a process) with namespaces of its own."""

    def run() -> None:
        assert ctypes.CDLL(None).unshare(flags) == 0
        work()

    if flags & _CLONE_NEWUSER:
        pid = os.fork()
        if pid == 0:
            try:
                run()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()


def test_each_belongs_to_a_user_namespace_of_its_own(namespaces: Namespaces) -> None:
    namespaces.create("one")
    namespaces.create("two")
    owners = {_owner(namespaces.path("one")), _owner(namespaces.path("two"))}
    assert len(owners) == 2
    assert Path("/proc/self/ns/user").stat().st_ino not in owners


def test_settings_hold_before_the_pin_is_there(namespaces: Namespaces) -> None:
    # Not so by themselves: an ordinary new namespace answers ARP for every address it has.
    naive: list[str | None] = []
    name = "net/ipv4/conf/all/arp_ignore"
    _unshared(_CLONE_NEWNET, lambda: naive.append(sysctl.read(name)))
    assert naive != [SETTINGS[name]]

    namespaces.create("plain")
    assert namespaces.holds("plain", {})
    assert not namespaces.holds("plain", FORWARDING)
    namespaces.create("router", FORWARDING)
    assert namespaces.holds("router", FORWARDING)


def test_a_setting_that_does_not_exist_is_refused_and_leaves_nothing(
    namespaces: Namespaces,
) -> None:
    with pytest.raises(MendHost) as refused:
        namespaces.create("odd", {"net/ipv4/no_such_setting": "1"})
    assert refused.value.code == "C319"
    assert namespaces.names() == []


def test_created_again_is_the_same_with_its_settings_back(namespaces: Namespaces) -> None:
    namespaces.create("again", FORWARDING)
    inode = namespaces.inode("again")
    namespaces.call("again", lambda: sysctl.write("net/ipv6/conf/all/disable_ipv6", "0"))
    assert not namespaces.holds("again", FORWARDING)
    namespaces.create("again", FORWARDING)
    assert namespaces.holds("again", FORWARDING)
    assert namespaces.inode("again") == inode


def test_a_uid_is_the_same_inside(namespaces: Namespaces) -> None:
    """nftables compares `skuid` in the numbers of the namespace's owner."""
    namespaces.create("uids")
    assert namespaces.call("uids", lambda: _sender_uid_seen(70001)) == 70001


def test_without_uid_map_everybody_would_look_alike(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    _unshared(
        _CLONE_NEWUSER | _CLONE_NEWNET, lambda: void(seen.write_text(str(_sender_uid_seen(0))))
    )
    assert seen.read_text() == "65534"


def void(_: object) -> None:
    return None


def _sender_uid_seen(uid: int) -> int:
    """What nftables in this namespace takes the owner of a socket of `uid` for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", 1))
    nft.apply(
        "table inet seen {\n"
        "  set uids { typeof meta skuid; flags dynamic; }\n"
        "  chain out { type filter hook output priority 0; add @uids { meta skuid }; }\n"
        "}\n"
    )
    libc = ctypes.CDLL(None)
    libc.setfsuid(uid)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", 9))
    finally:
        libc.setfsuid(0)
    (found,) = (
        item["set"]["elem"]
        for item in nft.read_json("list set inet seen uids")["nftables"]
        if "set" in item
    )
    (number,) = found
    return int(number)


def test_calls_go_in_come_back_and_nest(namespaces: Namespaces) -> None:
    home = _here()
    namespaces.create("a")
    namespaces.create("b")
    inode = {name: namespaces.inode(name) for name in ("a", "b")}

    def nested() -> tuple[int, int, int, int]:
        return (
            _here(),
            namespaces.call("b", _here),
            namespaces.call("", _here),
            _here(),
        )

    assert namespaces.call("a", nested) == (inode["a"], inode["b"], home, inode["a"])
    assert namespaces.call("", _here) == home
    assert _here() == home


def test_what_fails_inside_is_raised_outside_and_the_thread_is_back(
    namespaces: Namespaces,
) -> None:
    namespaces.create("fails")

    def fail() -> None:
        namespaces.call("", lambda: namespaces.call("fails", lambda: 1 / 0))

    with pytest.raises(ZeroDivisionError):
        namespaces.call("fails", fail)
    assert namespaces.call("", _here) == _here()


def test_many_threads_share_the_one(namespaces: Namespaces) -> None:
    for name in ("x", "y"):
        namespaces.create(name)
    wrong: list[str] = []

    def visit(name: str) -> None:
        inode = namespaces.inode(name)
        for _ in range(50):
            if namespaces.call(name, _here) != inode:
                wrong.append(name)

    threads = [threading.Thread(target=visit, args=(name,)) for name in ("x", "y") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_missing_is_an_error_and_stays_missing(namespaces: Namespaces) -> None:
    with pytest.raises(MendHost) as refused:
        namespaces.netlink("nobody", lambda _: None)
    assert refused.value.code == "C311"
    assert namespaces.names() == []
    namespaces.remove("nobody")


def test_a_file_without_mount_counts_as_absent(namespaces: Namespaces) -> None:
    namespaces.create("keeps-the-directory")
    (namespaces.path("left")).touch()
    assert namespaces.inode("left") is None
    assert namespaces.names() == ["keeps-the-directory"]
    namespaces.create("left")
    assert namespaces.names() == ["keeps-the-directory", "left"]
    namespaces.remove("left")
    assert not namespaces.path("left").exists()


def test_a_pin_below_a_pin_is_removed_too(namespaces: Namespaces) -> None:
    namespaces.create("under")
    namespaces.create("over")
    _bind(namespaces.path("over"), namespaces.path("under"))
    namespaces.remove("under")
    assert namespaces.names() == ["over"]


def test_a_replaced_pin_is_noticed(namespaces: Namespaces) -> None:
    namespaces.create("first")
    namespaces.create("second")
    namespaces.netlink("first", lambda _: None)
    _bind(namespaces.path("second"), namespaces.path("first"))
    assert namespaces.call("first", _here) == namespaces.inode("second")


def test_a_pin_is_one_mount_even_below_a_shared_one(tmp_path: Path) -> None:
    """The host's root is usually shared; a pin must not appear in its peer group too."""
    parent = tmp_path / "shared"
    parent.mkdir()
    _bind(parent, parent)
    subprocess.run(["mount", "--make-shared", str(parent)], check=True)
    try:
        with Namespaces(parent / "pins") as namespaces:
            namespaces.create("once")
            mounts = Path("/proc/self/mountinfo").read_text().split()
            assert mounts.count(str(namespaces.path("once"))) == 1
            namespaces.remove("once")
        assert str(parent / "pins") not in Path("/proc/self/mountinfo").read_text()
    finally:
        subprocess.run(["umount", str(parent)], check=True)


def _bind(source: Path, target: Path) -> None:
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)


def test_removed_while_its_socket_was_open_is_really_gone(namespaces: Namespaces) -> None:
    """An open netlink socket would keep the namespace, and with it the far end of a veth."""
    namespaces.create("near")
    namespaces.create("far")
    namespaces.netlink("far", lambda r: rtnl.read_link(r, "lo"))
    far = namespaces.call("near", lambda: namespaces.descriptor("far"))
    namespaces.netlink("near", lambda r: rtnl.add_veth(r, "n", peer="f", peer_namespace=far))
    namespaces.remove("far")
    deadline = time.monotonic() + 10
    while namespaces.netlink("near", lambda r: rtnl.read_link(r, "n")) is not None:
        assert time.monotonic() < deadline, "the namespace is still alive"


def test_two_hundred_cycles_leave_nothing(tmp_path: Path) -> None:
    before = _traces(tmp_path)
    with Namespaces(tmp_path / "pins") as namespaces:
        for _ in range(200):
            namespaces.create("cycle")
            namespaces.netlink("cycle", lambda _: None)
            namespaces.remove("cycle")
    assert _traces(tmp_path) == before
    assert list((tmp_path / "pins").iterdir()) == []


def _traces(below: Path) -> tuple[int, list[str], str]:
    """Descriptors, mounts and child processes of this process."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    children = "".join(p.read_text() for p in Path("/proc/self/task").glob("*/children"))
    return (
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
        [line for line in mounts if str(below) in line],
        children,
    )


def test_no_descriptor_is_inherited_by_programs(namespaces: Namespaces) -> None:
    namespaces.create("hidden")
    namespaces.netlink("hidden", lambda _: None)
    for handle in Path("/proc/self/fd").iterdir():
        try:
            target = str(handle.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("net:"):
            assert not os.get_inheritable(int(handle.name)), target


def _helpers() -> list[int]:
    children = " ".join(p.read_text() for p in Path("/proc/self/task").glob("*/children"))
    return [
        int(pid)
        for pid in children.split()
        if b"nsmaker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_what_is_kept_of_many_leaves_room_for_who_can_count_to_1024_only(
    namespaces: Namespaces,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors.allow_all()

    def low() -> int:
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        return sum(number < descriptors.FIRST for number in numbers)

    def has_loopback(name: str) -> bool:
        return namespaces.netlink(name, lambda route: rtnl.read_link(route, "lo")) is not None

    def socket_inside() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    try:
        names = [f"many.{number}" for number in range(40)]
        namespaces.create(names[0])
        assert has_loopback(names[0])
        few = low()
        for name in names:
            namespaces.create(name)
            assert has_loopback(name)
            namespaces.with_socket(name, "some", socket_inside, lambda _: None)
        assert low() - few < 20
        # Also those whose socket was closed meanwhile.
        assert has_loopback(names[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_helper_goes_when_it_is_not_needed_though_other_work_is(
    namespaces: Namespaces,
) -> None:
    namespaces.create("only")
    assert len(_helpers()) == 1
    deadline = time.monotonic() + 30
    while _helpers():
        assert time.monotonic() < deadline, "it stays"
        namespaces.call("only", _here)


def test_a_killed_helper_is_replaced(namespaces: Namespaces) -> None:
    namespaces.create("before")
    (helper,) = _helpers()
    os.kill(helper, 9)
    namespaces.create("after")
    assert namespaces.names() == ["after", "before"]


@pytest.mark.parametrize("verb", ["create", "remove"])
def test_killed_anywhere_the_next_one_mends_it(verb: str, tmp_path: Path) -> None:
    """Killed before each line that `create` and `remove` run, see crash_netns.py."""
    done = subprocess.run(
        [sys.executable, str(_CRASHES), verb, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    points = int(done.stdout.split()[-1])
    assert points > 10, "no crash points were found"
