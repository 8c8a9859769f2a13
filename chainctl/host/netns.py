"""The one door to network namespaces: pins, and one thread that goes in and comes back.

A namespace is known by the name of its pin, a bind mount below `pins` that keeps it alive
without a process; the empty name is the namespace in which `Namespaces` was made (the
host's). Everything that has to happen inside a namespace is handed to `Namespaces.call` or
`Namespaces.netlink`, which run it on their own thread: setns(2) moves a thread, and a thread
that also did something else would do it in the wrong place.

pyroute2's `IPRoute(netns=…)` is not used: it forks, and it makes namespaces that are missing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute

from chainctl.errors import MendHost
from chainctl.host import clock, descriptors, sysctl
from chainctl.host.files import names_in

T = TypeVar("T")

_HOST = ""
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_PRIVATE, _MS_SHARED, _MNT_DETACH = 0x1000, 1 << 18, 1 << 20, 2
_MAKER = Path(__file__).with_name("nsmaker.py")
_MAKER_PATIENCE = 10.0
"""Seconds for one namespace; measured 4 ms."""
_MOST_NETLINKS = 16
"""rtnetlink sockets that are kept, for a namespace each; opening one costs 0.4 ms."""
_IDLE = 5.0
"""Seconds without a new namespace after which the helper process is ended."""

# A new namespace inherits IPv4 settings from the host (devinet.c), so each that matters is
# set, whatever its usual default. Forwarding comes first because changing it resets the
# redirects. `default` is what links made later begin with, also where it equals `all`.
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv4/conf/default/forwarding")
_EACH = {
    "rp_filter": "0",
    "accept_redirects": "0",
    "send_redirects": "0",
    "accept_source_route": "0",
    "route_localnet": "0",
    "proxy_arp": "0",
    "arp_ignore": "2",
    "arp_announce": "2",
    # A gateway that comes up says so: who asked for it in vain asks again only after a while.
    "arp_notify": "1",
}
# A VPN client over TCP comes back from the same port: what is left of the connection before
# must not hold it. The defaults are up to minutes.
_TCP = {
    "net/ipv4/tcp_orphan_retries": "1",
    "net/ipv4/tcp_fin_timeout": "1",
    "net/ipv4/tcp_tw_reuse": "1",
}
SETTINGS: Mapping[str, str] = {
    **_TCP,
    **dict.fromkeys(_FORWARDING, "0"),
    **{f"net/ipv6/conf/{which}/disable_ipv6": "1" for which in ("all", "default")},
    **{
        f"net/ipv4/conf/{which}/{name}": value
        for which in ("all", "default")
        for name, value in _EACH.items()
    },
}
"""What holds in a namespace of ours unless `create` is told otherwise."""

FORWARDING: Mapping[str, str] = dict.fromkeys(_FORWARDING, "1")
"""For `create`: the namespace forwards IPv4."""


@dataclass
class _Kept:
    """What is held of a namespace while somebody works in it."""

    descriptor: int
    inode: int
    netlink: IPRoute | None = None
    sockets: dict[str, socket.socket] = field(default_factory=dict)


class Namespaces:
    """The namespaces pinned below the directory `pins`. Safe to use from any thread.

    Whoever makes it closes it, after the last call.
    """

    def __init__(self, pins: Path) -> None:
        self._pins = pins
        self._kept: dict[str, _Kept] = {}
        self._recent: list[str] = []
        """Whose rtnetlink sockets were used last, the newest at the end."""
        self._current: str | None = None
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._maker = _Maker()
        self._host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._host_stat = os.fstat(self._host)

    @property
    def is_here(self) -> bool:
        """Whether the caller is already inside a namespace, on the one thread that gets there."""
        return threading.current_thread() is self._thread

    def call(self, ns: str, work: Callable[[], T]) -> T:
        """Run `work` inside `ns` and return what it returns, or raise what it raises.

        May be nested: `work` may itself call in, also for another namespace. Raises
        MendHost C311 when there is no such namespace.
        """
        if self.is_here:
            return self._inside(ns, work)
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(self._inside(ns, work))
            except BaseException as error:
                future.set_exception(error)

        self._hand_over(job)
        return future.result()

    def netlink(self, ns: str, work: Callable[[IPRoute], T]) -> T:
        """`call` with the namespace's rtnetlink socket, which is kept open for a while.

        The socket is only for `work`: it belongs to the thread.
        """
        return self.call(ns, lambda: work(self._netlink(ns)))

    def with_socket(
        self,
        ns: str,
        purpose: str,
        make: Callable[[], socket.socket],
        work: Callable[[socket.socket], T],
    ) -> T:
        """`work` with the socket that `make` opened inside `ns`, kept for the next time.

        It stays where it was opened, so nobody has to go there for what is done often. It belongs
        to the thread, does not block, and is closed before the namespace is removed.
        """

        def use() -> T:
            kept = self._keep(ns)
            if purpose not in kept.sockets:
                made = self._inside(ns, make)
                kept.sockets[purpose] = descriptors.keep_socket(made)
            return work(kept.sockets[purpose])

        return self.call(_HOST, use)

    def descriptor(self, ns: str) -> int:
        """A descriptor of `ns` for netlink attributes; only within `call`, never to be closed."""
        return self._keep(ns).descriptor

    def create(self, name: str, settings: Mapping[str, str] | None = None) -> None:
        """Make and pin the namespace `name`, owned by a user namespace of its own.

        The owner matters: an administrator (CAP_NET_ADMIN) of a namespace that the host's
        user namespace owns reaches the links at the other end of its own ones. `settings`
        (paths below /proc/sys) are added to SETTINGS; all are in force before the pin
        appears. The second time it only sets them again. Raises MendHost C316 when the
        kernel makes no such namespace, C319 when it refuses a setting.
        """
        wanted = {**SETTINGS, **(settings or {})}
        self.call(_HOST, lambda: self._create(name, wanted))

    def adopt(self, name: str, place: Path, settings: Mapping[str, str] | None = None) -> None:
        """Pin the namespace `place` (`/proc/PID/ns/net`), which somebody else made, as `name`.

        Otherwise like `create`. Another namespace of that name is unpinned. Raises MendHost C311
        when `place` is none.
        """
        wanted = {**SETTINGS, **(settings or {})}
        self.call(_HOST, lambda: self._adopt(name, place, wanted))

    def remove(self, name: str) -> None:
        """Unpin `name`; the kernel removes the namespace when nobody is in it any more.

        Nothing happens when there is none. The last one takes the mount of `pins` along.
        """
        self.call(_HOST, lambda: self._remove(name))

    def tidy(self, prefix: str = "") -> None:
        """Take away what a crash left: the files of pins that are no longer or not yet pins, of
        those that begin with `prefix`, and the mount of `pins` when nothing is pinned.
        """
        self.call(_HOST, lambda: self._tidy(prefix))

    def forget(self, ns: str) -> None:
        """Close what is kept of `ns`: an open socket would keep it alive."""
        self.call(_HOST, lambda: self._forget(ns))

    def holds(self, name: str, settings: Mapping[str, str]) -> bool:
        """The settings in `name` are as `create` leaves them; those the kernel lacks do not
        count."""
        wanted = {**SETTINGS, **settings}
        return self.call(name, lambda: sysctl.holds(wanted))

    def names(self, prefix: str = "") -> list[str]:
        """The namespaces that are pinned; files left behind by a crash are not."""
        return [name for name in names_in(self._pins, prefix) if self.inode(name)]

    def inode(self, name: str) -> int | None:
        """Tells a namespace from another that later has its name; None when there is none."""
        try:
            pin = os.stat(f"{self._pins}/{name}")  # noqa: PTH116 (asked at every turn)
        except OSError:
            return None
        # All namespaces are files of one nsfs, so anything on another device is no pin.
        return pin.st_ino if pin.st_dev == self._host_stat.st_dev else None

    def path(self, name: str) -> Path:
        """The pin, for those who are told a namespace by path (runc's config.json)."""
        return self._pins / name

    def close(self) -> None:
        """End the thread and release what is kept; the namespaces stay."""
        with self._starting:
            if self._thread is not None:
                self._queue.put(None)
                self._thread.join()
                self._thread = None
            if self._host >= 0:
                os.close(self._host)
                self._host = -1

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # On the caller's thread.

    def _hand_over(self, job: Callable[[], None]) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="netlink", daemon=True)
                self._thread.start()
            self._queue.put(job)

    # On the netlink thread.

    def _work(self) -> None:
        # One loop for the sockets of all namespaces: with a loop each they cost four
        # descriptors and not one.
        self._loop = asyncio.new_event_loop()
        self._current = None
        while True:
            if self._maker.remaining == 0:
                self._maker.end()
            try:
                job = self._queue.get(timeout=self._maker.remaining)
            except queue.Empty:
                continue
            if job is None:
                break
            job()
        for ns in list(self._kept):
            self._forget(ns)
        self._maker.end()
        self._loop.close()

    def _inside(self, ns: str, work: Callable[[], T]) -> T:
        outer = self._current or _HOST
        self._switch(ns)
        try:
            return work()
        finally:
            self._switch(outer)

    def _switch(self, ns: str) -> None:
        if self._current != ns:
            _setns(self._host if ns == _HOST else self._keep(ns).descriptor)
            # Told only after it is so: when going back fails, the next one still knows.
            self._current = ns

    def _keep(self, ns: str) -> _Kept:
        """The pin is looked at each time: somebody may have replaced it by another."""
        inode = self._host_stat.st_ino if ns == _HOST else self.inode(ns)
        kept = self._kept.get(ns)
        if kept is None or kept.inode != inode:
            self._forget(ns)
            if inode is None:
                raise MendHost(
                    "C311", f"there is no network namespace {ns}", hint="chainctl up makes it again"
                )
            pin = f"/proc/self/fd/{self._host}" if ns == _HOST else self._pins / ns
            opened = descriptors.keep(os.open(pin, os.O_RDONLY | os.O_CLOEXEC))
            kept = self._kept[ns] = _Kept(opened, inode)
        return kept

    def _netlink(self, ns: str) -> IPRoute:
        kept = self._keep(ns)
        if kept.netlink is None:
            kept.netlink = IPRoute(ext_ack=True, use_event_loop=self._loop)
            # IPRoute forgets to say whether nlm_request answers with a generator.
            kept.netlink.status["nlm_generator"] = False
        self._recent = [*(other for other in self._recent if other != ns), ns]
        if len(self._recent) > _MOST_NETLINKS:
            # Whoever is in the middle of using one has got it a moment ago.
            unused = self._kept.get(self._recent.pop(0))
            if unused is not None:
                self._close_netlink(unused)
        return kept.netlink

    def _close_netlink(self, kept: _Kept) -> None:
        if kept.netlink is not None:
            kept.netlink.close()
            kept.netlink = None
            # The transport lets go of its socket in the loop's next round.
            self._loop.run_until_complete(asyncio.sleep(0))

    def _forget(self, ns: str) -> None:
        kept = self._kept.pop(ns, None)
        if kept is None:
            return
        for kept_socket in kept.sockets.values():
            kept_socket.close()
        self._close_netlink(kept)
        os.close(kept.descriptor)

    def _create(self, name: str, settings: Mapping[str, str]) -> None:
        if self.inode(name) is not None:
            self._inside(name, lambda: _settle(settings))
            return
        namespace = self._maker.make()
        try:
            self._settle_and_pin(namespace, name, settings)
        finally:
            os.close(namespace)

    def _adopt(self, name: str, place: Path, settings: Mapping[str, str]) -> None:
        try:
            namespace = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise MendHost("C311", f"there is no network namespace {place}") from None
        try:
            if self.inode(name) == os.fstat(namespace).st_ino:
                self._inside(name, lambda: _settle(settings))
                return
            self._remove(name)
            self._settle_and_pin(namespace, name, settings)
        finally:
            os.close(namespace)

    def _settle_and_pin(self, namespace: int, name: str, settings: Mapping[str, str]) -> None:
        self._current = None
        _setns(namespace)
        try:
            _settle(settings)
        finally:
            self._switch(_HOST)
        self._pin(namespace, name)

    def _pin(self, namespace: int, name: str) -> None:
        self._pins.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A mount of its own that is shared: then a pin that goes also goes from the mount
        # namespaces of programs started meanwhile, which would keep the namespace alive.
        # Private in between, or each pin would appear twice, in the parent's peer group too.
        if not _try_mount("none", self._pins, _MS_SHARED):
            _mount(str(self._pins), self._pins, _MS_BIND)
            _mount("none", self._pins, _MS_PRIVATE)
            _mount("none", self._pins, _MS_SHARED)
        pin = self._pins / name
        os.close(os.open(pin, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0))
        _mount(f"/proc/self/fd/{namespace}", pin, _MS_BIND)

    def _remove(self, name: str) -> None:
        self._forget(name)
        pin = self._pins / name
        while self.inode(name) is not None:
            _umount(pin)
        pin.unlink(missing_ok=True)
        self._unmount_pins()

    def _tidy(self, prefix: str) -> None:
        for name in names_in(self._pins, prefix):
            if self.inode(name) is None:
                (self._pins / name).unlink()
        self._unmount_pins()

    def _unmount_pins(self) -> None:
        if not self.names():
            _try_umount(self._pins)


class _Maker:
    """The helper process of `chainctl.host.nsmaker`: started when needed, ended when idle."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._door: socket.socket | None = None
        self._asked = 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds until it has waited for nothing long enough; None when it does not run."""
        if self._process is None:
            return None
        return max(0.0, self._asked + _IDLE - clock.boot_seconds())

    def make(self) -> int:
        """A descriptor of a new network namespace that a new user namespace owns."""
        for _ in range(2):
            answer, descriptors = self._ask()
            if descriptors:
                return descriptors[0]
            if answer:
                raise MendHost(
                    "C316",
                    f"the kernel makes no network namespace: {os.strerror(int(answer))}",
                    hint="see the settings below /proc/sys/user (max_user_namespaces)",
                )
            # It died (somebody killed it); the next one is asked.
            self.end()
        raise MendHost("C316", "the program that makes network namespaces ends unexpectedly")

    def _ask(self) -> tuple[bytes, list[int]]:
        if self._door is None:
            self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._door.settimeout(_MAKER_PATIENCE)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_MAKER)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    # Ctrl-C in the terminal is for the supervisor.
                    start_new_session=True,
                )
        try:
            self._asked = clock.boot_seconds()
            self._door.send(b"?")
            answer, descriptors, _, _ = socket.recv_fds(self._door, 16, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return b"", []
        return answer, descriptors

    def end(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _settle(settings: Mapping[str, str]) -> None:
    has_ipv6 = Path("/proc/sys/net/ipv6").is_dir()
    for name, value in settings.items():
        if has_ipv6 or not name.startswith("net/ipv6/"):
            sysctl.write(name, value)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
]


def _setns(namespace: int) -> None:
    # os.setns came with Python 3.12.
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise _refused("cannot enter a network namespace")


def _try_mount(source: str, target: Path, flags: int) -> bool:
    return not _libc.mount(source.encode(), bytes(target), b"none", flags, None)


def _mount(source: str, target: Path, flags: int) -> None:
    if not _try_mount(source, target, flags):
        raise _refused(f"cannot mount {target}")


def _try_umount(target: Path) -> bool:
    return not _libc.umount2(bytes(target), _MNT_DETACH)


def _umount(target: Path) -> None:
    if not _try_umount(target):
        raise _refused(f"cannot unmount {target}")


def _refused(doing: str) -> MendHost:
    number = ctypes.get_errno()
    return MendHost("C317", f"{doing}: {os.strerror(number)}", hint="run as root")
