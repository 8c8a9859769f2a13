"""Watches who is in the Docker networks of chains, and whether the daemon is there at all.

One thread for all networks, only while there are any. It asks the daemon when that says that
something happened, and tries again and again where there is none. Nothing waits for it.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from chainctl.errors import ChainctlError
from chainctl.model.clients import DockerSeen

if TYPE_CHECKING:
    from chainctl.runtime.docker import DockerClients
    from chainctl.runtime.docker_daemon import Events

_AGAIN = 2.0
"""Seconds until a daemon that was not there is looked for again."""
_END_PATIENCE = 1.0


class DockerWatch:
    """`follow` and `leave` networks from any thread. What is `seen` may be read at any time."""

    def __init__(self, docker: DockerClients, changed: Callable[[str], None]) -> None:
        """`changed` is called on the thread of the watch, with the name of the network."""
        self._docker = docker
        self._changed = changed
        self._seen: dict[str, DockerSeen] = {}
        self._lock = threading.Lock()
        self._look = threading.Event()
        self._halt = threading.Event()
        self._events: Events | None = None
        self._thread: threading.Thread | None = None

    def follow(self, network: str, known: DockerSeen) -> None:
        """From now on; what is `known` until it was looked at. Nothing happens the second time."""
        with self._lock:
            if network in self._seen:
                return
            self._seen[network] = known
            if self._thread is None:
                self._halt = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._halt,), name="docker", daemon=True
                )
                self._thread.start()
            else:
                self._interrupt()

    def leave(self, network: str) -> None:
        with self._lock:
            if self._seen.pop(network, None) is None or self._seen:
                return
        self.close()

    def close(self) -> None:
        """A daemon that hangs is not waited for: the thread ends by itself when it answers."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._halt.set()
            self._seen.clear()
            self._interrupt()
        if thread is not None:
            thread.join(_END_PATIENCE)

    def seen(self, network: str) -> DockerSeen | None:
        """None: nobody follows it."""
        return self._seen.get(network)

    def _interrupt(self) -> None:
        self._look.set()
        if self._events is not None:
            with suppress(OSError):
                self._events.close()

    def _run(self, halt: threading.Event) -> None:
        while not halt.is_set():
            self._look.clear()
            try:
                with suppress(ChainctlError):
                    self._listen(halt)
                if halt.is_set():
                    return
                # Asked to look at another network, it goes on at once.
                if not self._look.is_set():
                    self._put_all(lambda _, seen: replace(seen, answers=False), halt)
            except Exception as error:
                # Nobody else would notice that containers come and go.
                traceback.print_exception(error)
            self._look.wait(_AGAIN)

    def _listen(self, halt: threading.Event) -> None:
        """Until the daemon goes away or somebody interrupts."""
        if not self._docker.has_socket():
            return
        with self._docker.daemon.events() as events:
            with self._lock:
                self._events = events
            try:
                # What happens while this is asked makes an event, and it is asked again.
                self._put_all(self._ask, halt)
                if self._look.is_set():
                    return
                for _ in events:
                    if halt.is_set():
                        return
                    self._put_all(self._ask, halt)
            finally:
                with self._lock:
                    self._events = None

    def _ask(self, network: str, _before: DockerSeen) -> DockerSeen:
        return self._docker.look_at_network(network)

    def _put_all(
        self, look: Callable[[str, DockerSeen], DockerSeen], halt: threading.Event
    ) -> None:
        for network, before in list(self._seen.items()):
            found = look(network, before)
            with self._lock:
                if halt.is_set() or network not in self._seen or found == before:
                    continue
                self._seen[network] = found
            self._changed(network)
