"""The door to a Docker daemon: the one module that imports Docker's SDK.

Every call has an end: a daemon that hangs costs `PATIENCE` and no more, and whoever called
is told LookAgain C546. What Docker itself refuses is MendHost C547 with its words. Nothing here
is needed to know what runs, see `chainctl.runtime.docker`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any, NoReturn, Protocol

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.types import HostConfig, IPAMConfig, IPAMPool, LogConfig, Mount, Ulimit

from chainctl.errors import LookAgain, MendFile, MendHost, RefusedByPolicy
from chainctl.model.clients import Member
from chainctl.runtime.container import Archive, ContainerSpec, NetworkSpec

PATIENCE = 10.0
"""Seconds for each answer; measured 5 ms to 0.6 s, a start being the slowest."""
_LOG_BYTES = "64k"
_LOG_LINES = 100
_EVENTS = ("start", "die", "rename", "connect", "disconnect", "destroy")
"""Of containers and networks. A container is in its network before it runs, and leaves it after."""


class Events(Protocol):
    """An event each time, as the daemon writes it."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Daemon:
    """Each method opens a connection of its own, so that a restarted daemon is no matter."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def answers(self) -> bool:
        """It is there, and can hold chains: not one in a user namespace of a person's own."""
        try:
            with self._asking() as api:
                options = api.info().get("SecurityOptions") or ()
        except (LookAgain, MendHost):
            return False
        return not any("rootless" in option for option in options)

    def have_image(self, archive: Archive) -> str:
        """Docker's digest of exactly this image, which is loaded when it is not there."""
        with self._asking() as api:
            found = _image(api, archive)
            if found is None:
                for _ in api.load_image(archive.data):
                    pass
                found = _image(api, archive)
        if found is None:
            raise MendHost("C547", f"Docker has no image {archive.ids[0]} after loading it")
        return found

    def create(self, spec: ContainerSpec) -> str:
        """Make a container, which does not run yet; its id."""
        image = self.have_image(spec.image)
        with self._asking() as api:
            made = api.create_container(
                image,
                entrypoint=list(spec.argv[:1]),
                command=list(spec.argv[1:]),
                name=spec.name,
                user=f"{spec.uid}:{spec.uid}",
                environment=list(spec.env),
                labels=dict(spec.labels),
                working_dir="/",
                # A daemon that is told to end would wait ten seconds for each of ours.
                stop_signal="SIGKILL",
                host_config=_host_config(api, spec),
                use_config_proxy=False,
            )
            return str(made["Id"])

    def start(self, container: str) -> int:
        """Let it run; the pid of its process, as this machine counts."""
        with self._asking() as api:
            api.start(container)
            state = api.inspect_container(container)["State"]
        pid = int(state["Pid"])
        if not pid:
            raise MendHost("C543", f"it ended at once: {state.get('Error') or self.log(container)}")
        return pid

    def remove(self, container: str) -> None:
        """By id or name, whatever it does; nothing happens when there is none."""
        deadline = time.monotonic() + PATIENCE
        with self._asking() as api, contextlib.suppress(NotFound):
            while True:
                try:
                    api.remove_container(container, force=True, v=True)
                    return
                except NotFound:
                    raise
                except APIError as error:
                    # Somebody else is removing it, which is as good once it is done.
                    if error.status_code != 409 or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def have_network(self, spec: NetworkSpec) -> None:
        """The one that is there stays if it is the same, is replaced if nobody is in it, and else
        is MendHost C549.
        """
        pools = [IPAMPool(str(spec.subnet), str(spec.range), str(spec.gateway))]
        with self._asking() as api:
            found = _network(api, spec.name)
            if found is not None and _is_same(found, spec):
                return
            if found is not None:
                if found.get("Containers"):
                    raise MendHost(
                        "C549",
                        f"Docker has another network {spec.name}, with containers in it",
                        hint=f"stop them, docker network rm {spec.name}, chainctl up",
                    )
                api.remove_network(spec.name)
            api.create_network(
                spec.name,
                driver="bridge",
                ipam=IPAMConfig(pool_configs=pools),
                labels={spec.label: spec.tag},
                options=_network_options(spec),
            )

    def remove_network(self, name: str) -> bool:
        """False when containers are in it, running or not: it stays."""
        with self._asking() as api:
            found = _network(api, name)
            if found is None:
                return True
            # By name: a container that was never started does not know the id yet.
            members = api.containers(all=True, filters={"network": name})
            if members:
                return False
            api.remove_network(name)
        return True

    def members(self, network: str) -> tuple[Member, ...] | None:
        """The running containers in it; None: there is no such network.

        By the network's ends: a container is said to run for a while after it was said to be gone.
        """
        with self._asking() as api:
            found = api.containers(all=True, filters={"network": network})
            place = _network(api, network)
        if place is None:
            return None
        labels = {str(one["Id"]): one.get("Labels") or {} for one in found}
        names = {str(one["Id"]): str(one["Names"][0]) for one in found if one.get("Names")}
        ends = (place.get("Containers") or {}).items()
        members = (
            _member(key, names.get(key, str(end.get("Name"))), labels.get(key, {}), end)
            for key, end in ends
        )
        return tuple(sorted(filter(None, members)))

    @contextlib.contextmanager
    def events(self) -> Iterator[Events]:
        """What happens from now on to networks and to who is in them; nobody waits while it does.

        Ends when the daemon does, or when somebody calls `close`.
        """
        with self._asking() as api:
            events: Events = api.events(filters={"event": list(_EVENTS)})
            try:
                yield events
            finally:
                events.close()

    def join(self, container: str, network: str) -> IPv4Address | None:
        """Take a container that has no network into this one; its address there, if it runs.

        Raises MendFile C560 when there is no such container, RefusedByPolicy C561 when it has
        another way out, or rights to make one.
        """
        with self._asking() as api:
            try:
                found = api.inspect_container(container)
            except NotFound:
                raise MendFile(
                    "C560", f"there is no container {container!r}", hint="docker ps --all"
                ) from None
            networks = set(found["NetworkSettings"]["Networks"])
            if networks != {network}:
                _refuse_other_ways(container, found, networks - {network})
                if "none" in networks:
                    api.disconnect_container_from_network(container, "none")
                api.connect_container_to_network(container, network)
                found = api.inspect_container(container)
        place = found["NetworkSettings"]["Networks"].get(network) or {}
        with contextlib.suppress(KeyError, ValueError):
            return IPv4Address(place["IPAddress"])
        return None

    def labelled(self, label: str) -> list[str]:
        """Names of all containers, running or not, that have this label (`key=value`)."""
        with self._asking() as api:
            found = api.containers(all=True, filters={"label": label})
        return [str(one["Names"][0]).lstrip("/") for one in found if one.get("Names")]

    def log(self, container: str) -> str:
        """The last lines it printed; empty when there is no such container."""
        with self._asking() as api:
            try:
                text: bytes = api.logs(container, stdout=True, stderr=True, tail=_LOG_LINES)
            except NotFound:
                return ""
        return text.decode(errors="replace")

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Any]:
        api = None
        try:
            api = docker.APIClient(
                f"unix://{self._socket}", version="auto", timeout=PATIENCE, credstore_env={}
            )
            yield api
        except NotFound:
            raise
        except APIError as error:
            _refused(error)
        # Not an OSError of ours: requests wraps what the socket says.
        except (DockerException, requests.RequestException) as error:
            raise LookAgain(
                "C546",
                f"Docker does not answer on {self._socket}: {_words(error)}",
                hint="look at it: systemctl status docker",
            ) from None
        finally:
            if api is not None:
                api.close()


def _host_config(api: Any, spec: ContainerSpec) -> HostConfig:
    security = ["no-new-privileges:true"]
    if spec.seccomp:
        security.append(f"seccomp={spec.seccomp}")
    return api.create_host_config(
        network_mode=spec.network,
        cap_drop=["ALL"],
        security_opt=security,
        read_only=True,
        # A daemon that maps users would give the slot's uid to somebody else.
        userns_mode="host",
        ipc_mode="none",
        cgroupns="private",
        mem_limit=spec.memory,
        pids_limit=spec.pids,
        devices=[f"{node}:{inside}:rw" for node, inside in spec.devices],
        mounts=[Mount(inside, str(place), type="bind") for place, inside in spec.binds],
        ulimits=[Ulimit(name=name, soft=most, hard=most) for name, most in spec.ulimits.items()],
        log_config=LogConfig(type="json-file", config={"max-size": _LOG_BYTES, "max-file": "1"}),
        # Who comes back is decided by the supervisor, which proves it before it counts.
        restart_policy={"Name": "no"},
    )


def _member(key: str, name: str, labels: dict[str, str], end: dict[str, Any]) -> Member | None:
    """None for one that has no address."""
    try:
        return Member(
            container=name.lstrip("/"),
            key=key,
            address=IPv4Interface(end["IPv4Address"]).ip,
            mac=str(end.get("MacAddress") or "").lower(),
            labels=tuple(sorted((str(key), str(value)) for key, value in labels.items())),
        )
    except (KeyError, ValueError):
        return None


def _network(api: Any, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = api.inspect_network(name)
    except NotFound:
        return None
    return found


def _network_options(spec: NetworkSpec) -> dict[str, str]:
    """The bridge has no address of the machine, so the gateway's belongs to the chain alone."""
    prefix = "com.docker.network.bridge"
    return {
        f"{prefix}.name": spec.bridge,
        f"{prefix}.inhibit_ipv4": "true",
        f"{prefix}.enable_ip_masquerade": "false",
    }


def _is_same(found: dict[str, Any], spec: NetworkSpec) -> bool:
    pool = (found["IPAM"].get("Config") or [{}])[0]
    return (
        found["Driver"] == "bridge"
        and _network_options(spec).items() <= (found.get("Options") or {}).items()
        and pool.get("Subnet") == str(spec.subnet)
        and pool.get("Gateway") == str(spec.gateway)
    )


def _refuse_other_ways(name: str, found: dict[str, Any], networks: set[str]) -> None:
    host = found["HostConfig"]
    mode = str(host.get("NetworkMode", ""))
    others = networks - {"none"}
    if others or mode == "host" or mode.startswith("container:"):
        words = f"{name} has other networks ({', '.join(sorted(others)) or mode})"
        hint = "start it with --network none, or with the chain's network alone"
        raise RefusedByPolicy("C561", f"{words}, which are ways around the chain", hint=hint)
    rights = {str(right).removeprefix("CAP_") for right in host.get("CapAdd") or ()}
    if host.get("Privileged") or rights & {"ALL", "NET_ADMIN", "SYS_ADMIN"}:
        raise RefusedByPolicy(
            "C561",
            f"{name} may administer networks and so make itself a way around the chain",
            hint="start it without --privileged and without --cap-add NET_ADMIN",
        )


def _image(api: Any, archive: Archive) -> str | None:
    for digest in archive.ids:
        with contextlib.suppress(NotFound):
            return str(api.inspect_image(digest)["Id"])
    return None


def _refused(error: APIError) -> NoReturn:
    raise MendHost(
        "C547", f"Docker refuses: {error.explanation or error}", hint="chainctl doctor"
    ) from None


def _words(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
