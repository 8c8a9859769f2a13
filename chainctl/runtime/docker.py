"""VPN clients as containers of a Docker daemon, and the containers that hold hops' namespaces.

The daemon is asked to make and to remove, never what there is: `run_dir/docker` remembers the
process of each container, and the kernel says whether it lives and in which namespace. So a
daemon that hangs or is gone changes nothing but what can be mended meanwhile.

`clients/NAME` and `anchors/NAME` are directories: `made.json` is the memory, in `fs` a client has
its small tmpfs with the TUN node and the control socket. The directory comes first and goes last,
and containers have names that follow from theirs, so that `start` and `stop` clean up from any
point; whoever does either holds a lock on the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from chainctl.errors import ChainctlError, LookAgain, MendHost
from chainctl.host.files import data_path, names_in, write_atomic
from chainctl.model.clients import DockerSeen
from chainctl.model.parts import DockerNetwork
from chainctl.runtime.bundle import MEMORY_LIMIT, PIDS_LIMIT, ClientSpec
from chainctl.runtime.container import Archive, ContainerSpec, NetworkSpec
from chainctl.runtime.locks import locked
from chainctl.runtime.mounts import (
    forget_config,
    make_devices,
    mount_small,
    place_config,
    unmount,
)
from chainctl.runtime.runtime import (
    PATIENCE,
    Running,
    start_time,
    wait_until_it_answers,
    watch,
)
from chainctl.settings import Settings

if TYPE_CHECKING:
    # Docker's SDK takes longer to load than all of the supervisor: only who uses it waits.
    from chainctl.runtime.docker_daemon import Daemon

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_LABEL = "chainctl.run"
_ANCHOR_MEMORY, _ANCHOR_PIDS = 32 * 2**20, 16
"""The program needs one thread and next to no memory; before it there is runc's own init, a Go
program with some five threads, which a busy machine makes more of.
"""
_ANCHOR_UID = 65532


@dataclass(frozen=True)
class _Made:
    """What is remembered of a container that was started."""

    container: str
    pid: int
    started: int
    """Of the process, as `start_time` has it."""
    wanted: str
    """Digest of everything Docker was asked for."""
    link: str
    image: str
    kind: str = ""
    config: str = ""
    """Both as `Running` has them."""

    @property
    def lives(self) -> bool:
        return start_time(self.pid) == self.started


class DockerClients:
    """`Runtime` by a Docker daemon, for the clients below one `run_dir`.

    A client joins the namespace of the anchor that has the name of its namespace's pin.
    """

    def __init__(self, settings: Settings, pack: Callable[[str], Archive]) -> None:
        """`pack` gives the image with this digest."""
        self._folder = settings.run_dir / "docker"
        self._socket = settings.docker_socket
        self._pack = pack
        # Two supervisors with directories of their own may share a daemon.
        self._tag = hashlib.sha256(str(settings.run_dir.resolve()).encode()).hexdigest()[:8]

    @property
    def daemon(self) -> Daemon:
        from chainctl.runtime.docker_daemon import Daemon

        return Daemon(self._socket)

    def daemon_answers(self) -> bool:
        """At once when there is no socket; a daemon that hangs has ten seconds."""
        return self.has_socket() and self.daemon.answers()

    # Clients.

    def start(self, spec: ClientSpec) -> int:
        if not _NAME.fullmatch(spec.name):
            raise ValueError(f"{spec.name!r} is no name for a client")
        with self._only_one(self._client(spec.name)):
            anchor = self._anchor_of(spec)
            wanted = self._client_container(spec, anchor.container)
            running = self._running(spec.name)
            made = self._made(self._client(spec.name))
            if running and made and self._is_as_wanted(spec, wanted, made, running):
                forget_config(self.control_dir(spec.name))  # Of a start that was cut short.
                return running.pid
            self._clean(self._client(spec.name))
            self._prepare(spec)
            try:
                self._run(self._client(spec.name), wanted, spec.image, spec)
                pid = wait_until_it_answers(
                    spec.name,
                    partial(self._running, spec.name),
                    self.control_socket(spec),
                    partial(self.read_log, spec.name),
                )
                forget_config(self.control_dir(spec.name))
                return pid
            except BaseException:
                with contextlib.suppress(ChainctlError):
                    self._clean(self._client(spec.name))
                raise

    def stop(self, name: str) -> None:
        """Its process is killed also when the daemon does not answer: then raises C546."""
        self._stop(self._client(name))

    def tidy(self) -> None:
        for place in (self._folder / "clients", self._folder / "anchors", self._folder):
            with contextlib.suppress(OSError, LookAgain), locked(place, fcntl.LOCK_EX, 0):
                place.rmdir()

    def observe(self, prefix: str = "") -> dict[str, Running | None]:
        """0.1 ms a client."""
        return {name: self._running(name) for name in self._names("clients", prefix)}

    def watch(self, name: str) -> int | None:
        return watch(partial(self._running, name))

    def control_socket(self, spec: ClientSpec) -> Path:
        return self.control_dir(spec.name) / spec.control_socket

    def control_dir(self, name: str) -> Path:
        return self._client(name) / "fs/control"

    def read_log(self, name: str) -> str:
        try:
            return self.daemon.log(self._container(self._client(name)))
        except ChainctlError:
            return ""

    # Anchors.

    def anchor(self, ns: str, image: str, argv: tuple[str, ...]) -> Path:
        """Have a container that holds a namespace without any link; gives the namespace.

        `argv` is a program of `image` that waits.
        The one that runs is kept. Raises LookAgain C546, MendHost C547.
        """
        place = self._anchor(ns)
        with self._only_one(place):
            wanted = self._anchor_container(place, image, argv)
            made = self._made(place)
            if made is None or not made.lives or made.wanted != _digest(wanted):
                self._clean(place)
                self._run(place, wanted, image)
                made = self._made(place)
        assert made is not None, "just made"
        return Path(f"/proc/{made.pid}/ns/net")

    def anchored(self, ns: str) -> int | None:
        """Inode of the namespace that the anchor holds; None when there is no living one."""
        made = self._made(self._anchor(ns))
        return _netns_inode(made.pid) if made and made.lives else None

    def release(self, ns: str) -> None:
        """The namespace is held no more by a container; nothing happens when it was not."""
        if self._anchor(ns).exists():
            self._stop(self._anchor(ns))

    def anchors(self, prefix: str = "") -> list[str]:
        """Names of the namespaces that have or had an anchor."""
        return self._names("anchors", prefix)

    def watch_anchor(self, ns: str) -> int | None:
        """A pidfd that becomes readable when the anchor ends; the caller closes it."""
        return watch(lambda: self._process(self._anchor(ns)))

    # The network for containers that use the chain.

    def make_network(self, part: DockerNetwork) -> None:
        """Have exactly this network. Raises MendHost C549 when another of that name is in use."""
        half = next(part.subnet.subnets(1))
        self.daemon.have_network(
            NetworkSpec(part.name, part.bridge, part.subnet, half, part.gateway, _LABEL, self._tag)
        )
        place = self._folder / "networks" / f"{part.name}.json"
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = {"bridge": part.bridge, "subnet": str(part.subnet), "gateway": str(part.gateway)}
        write_atomic(place, json.dumps(made).encode(), 0o600)

    def network_made(self, name: str) -> DockerNetwork | None:
        """As it was made, unless `look_at_network` found it gone."""
        try:
            made = json.loads((self._folder / "networks" / f"{name}.json").read_text())
            subnet, gateway = IPv4Network(made["subnet"]), IPv4Address(made["gateway"])
            return DockerNetwork(name, made["bridge"], subnet, gateway)
        except (OSError, ValueError, KeyError):
            return None

    def remove_network(self, name: str) -> None:
        """One with containers in it stays, for they have no other way out; so does one of a
        daemon that does not answer.
        """
        with contextlib.suppress(LookAgain):
            if self.daemon.remove_network(name):
                self.forget_network(name)

    def uses_bridge(self, bridge: str) -> bool:
        """A network is on it that stayed."""
        names = [place.stem for place in (self._folder / "networks").glob("*.json")]
        made = [self.network_made(name) for name in names]
        return any(network is not None and network.bridge == bridge for network in made)

    def forget_network(self, name: str) -> None:
        (self._folder / "networks" / f"{name}.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self._folder / "networks").rmdir()
            self._folder.rmdir()

    def look_at_network(self, name: str) -> DockerSeen:
        """Who is in it; one that is no more is forgotten, so that it is made again.

        Raises LookAgain C546, MendHost C547.
        """
        members = self.daemon.members(name)
        if members is None and self.network_made(name):
            self.forget_network(name)
        return DockerSeen(answers=True, members=members or ())

    def has_socket(self) -> bool:
        return self._socket.exists()

    # Containers of both kinds.

    def _run(
        self, place: Path, wanted: ContainerSpec, image: str, client: ClientSpec | None = None
    ) -> None:
        daemon = self.daemon
        container = daemon.create(wanted)
        try:
            pid = daemon.start(container)
        except MendHost as error:
            if error.code != "C547":
                raise
            raise MendHost(
                "C542", f"Docker cannot start {place.name}: {error.message}", hint=error.hint
            ) from None
        started = start_time(pid)
        if started is None:
            raise MendHost(
                "C543",
                f"the container {place.name} ended at once, or runs where this process cannot"
                f" see it: {daemon.log(container).strip()}",
                hint="chainctl and Docker have to run on the same machine, not inside containers",
            )
        about = (client.kind, client.config_digest) if client else ("", "")
        link = client.link if client else ""
        made = _Made(container, pid, started, _digest(wanted), link, image, *about)
        write_atomic(place / "made.json", json.dumps(asdict(made)).encode(), 0o600)

    def _client_container(self, spec: ClientSpec, anchor: str) -> ContainerSpec:
        fs = self._client(spec.name) / "fs"
        return ContainerSpec(
            name=self._container(self._client(spec.name)),
            image=self._pack(spec.image),
            argv=spec.argv,
            env=spec.env,
            uid=spec.uid,
            network=f"container:{anchor}",
            labels=self._labels(spec.netns.name)
            | {"chainctl.slot": spec.link, "chainctl.config": spec.config_digest},
            memory=MEMORY_LIMIT,
            pids=PIDS_LIMIT,
            seccomp=data_path(spec.seccomp).read_text(),
            devices=((fs / "dev/net/tun", "/dev/net/tun"),),
            binds=((fs / "control", spec.control_dir),),
            # A core dump would hold the private key.
            ulimits={"nofile": 1024, "core": 0},
        )

    def _anchor_container(self, place: Path, image: str, argv: tuple[str, ...]) -> ContainerSpec:
        return ContainerSpec(
            name=self._container(place),
            image=self._pack(image),
            argv=argv,
            uid=_ANCHOR_UID,
            network="none",
            labels=self._labels(place.name),
            memory=_ANCHOR_MEMORY,
            pids=_ANCHOR_PIDS,
        )

    def _labels(self, ns: str) -> dict[str, str]:
        chain, _, hop = ns.partition(".")
        return {_LABEL: self._tag, "chainctl.chain": chain, "chainctl.hop": hop}

    def _anchor_of(self, spec: ClientSpec) -> _Made:
        made = self._made(self._anchor(spec.netns.name))
        if made is None or not made.lives:
            raise LookAgain(
                "C548", f"the container that holds the namespace of {spec.name} is gone"
            )
        return made

    def _is_as_wanted(
        self, spec: ClientSpec, wanted: ContainerSpec, made: _Made, running: Running
    ) -> bool:
        return (
            made.wanted == _digest(wanted)
            and running.netns_inode == spec.netns.stat().st_ino
            and self.control_socket(spec).exists()
        )

    def _prepare(self, spec: ClientSpec) -> None:
        fs = self._client(spec.name) / "fs"
        fs.mkdir(mode=0o700)
        mount_small(fs)
        for folder in ("dev", "control"):
            (fs / folder).mkdir(mode=0o755)
        make_devices(fs / "dev", spec.uid)
        (fs / "control").chmod(0o700)
        os.chown(fs / "control", spec.uid, spec.uid)
        place_config(fs / "control", spec)

    def _running(self, name: str) -> Running | None:
        return self._process(self._client(name))

    def _process(self, place: Path) -> Running | None:
        made = self._made(place)
        if made is None or not made.lives:
            return None
        try:
            return Running(
                pid=made.pid,
                netns_inode=_netns_inode(made.pid),
                uid=Path(f"/proc/{made.pid}").stat().st_uid,
                link=made.link,
                image=made.image,
                kind=made.kind,
                config=made.config,
            )
        # It has just ended.
        except OSError:
            return None

    def _made(self, place: Path) -> _Made | None:
        try:
            return _Made(**json.loads((place / "made.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _stop(self, place: Path) -> None:
        with self._only_one(place):
            self._clean(place)
            place.rmdir()
        self.tidy()

    def _clean(self, place: Path) -> None:
        """The process first: that it carries nothing any more needs no daemon."""
        made = self._made(place)
        if made is not None:
            _kill(made)
        self.daemon.remove(self._container(place))
        if (place / "fs").exists():
            unmount(place / "fs")
            (place / "fs").rmdir()
        (place / "made.json").unlink(missing_ok=True)

    def _container(self, place: Path) -> str:
        return f"chainctl-{self._tag}-{place.name}"

    def _client(self, name: str) -> Path:
        return self._folder / "clients" / name

    def _anchor(self, ns: str) -> Path:
        return self._folder / "anchors" / ns

    def _names(self, kind: str, prefix: str) -> list[str]:
        folder = self._folder / kind
        return [name for name in names_in(folder, prefix) if (folder / name).is_dir()]

    @contextlib.contextmanager
    def _only_one(self, place: Path) -> Iterator[None]:
        """Nobody else starts or stops it, and nobody takes the directories away."""
        with (
            locked(self._folder, fcntl.LOCK_SH, PATIENCE),
            locked(place.parent, fcntl.LOCK_SH, PATIENCE),
            locked(place, fcntl.LOCK_EX, PATIENCE),
        ):
            yield


def _digest(spec: ContainerSpec) -> str:
    return hashlib.sha256(repr(spec).encode()).hexdigest()


def _netns_inode(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def _kill(made: _Made) -> None:
    try:
        handle = os.pidfd_open(made.pid)
    except ProcessLookupError:
        return
    try:
        # The number may belong to somebody else by now; the handle stays with who it was.
        if not made.lives:
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise LookAgain("C544", f"process {made.pid} of a container does not end")
    finally:
        os.close(handle)
