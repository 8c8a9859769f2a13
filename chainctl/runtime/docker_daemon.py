"""The door to a Docker daemon: the one module that imports Docker's SDK.

Every call has an end: a daemon that hangs costs `PATIENCE` and no more, and whoever called
is told LookAgain C546. What Docker itself refuses is MendHost C547 with its words. Nothing here
is needed to know what runs, see `chainctl.runtime.docker`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.types import HostConfig, LogConfig, Mount, Ulimit

from chainctl.errors import LookAgain, MendHost
from chainctl.runtime.container import Archive, ContainerSpec

PATIENCE = 10.0
"""Seconds for each answer; measured 5 ms to 0.6 s, a start being the slowest."""
_LOG_BYTES = "64k"
_LOG_LINES = 100


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
