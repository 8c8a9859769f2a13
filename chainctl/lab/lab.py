"""A lab as one value: made, found again, used, taken down.

    with Lab.create(LabSpec("demo"), wireguard_go=path) as lab:
        lab.run("client", ["ping", "-c1", "45.100.0.10"], timeout=5)
        lab.server(2).freeze()

Crash-only: `create` clears away what a killed one left, `down` needs no state file, and both
may be called again at any time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from chainctl.errors import MendHost
from chainctl.lab import namespaces, providers
from chainctl.lab.clearing import clear, remove
from chainctl.lab.layout import TARGET, LabSpec, Layout, ServerPlan
from chainctl.lab.making import (
    PROGRAMS,
    Report,
    build,
    draw_lines,
    need_root,
    prepare,
    start_server,
    step,
)
from chainctl.lab.processes import Process
from chainctl.lab.state import Line, State, home_of, load_state, locked_home, save_state


class Lab:
    """A lab that is up. Get one by `create` or `load`."""

    def __init__(self, state: State) -> None:
        self.name = state.spec.name
        self.layout = Layout(state.spec)
        self.home = home_of(self.name)
        self.directory = state.directory

    @classmethod
    def create(
        cls,
        spec: LabSpec,
        directory: Path | None = None,
        *,
        wireguard_go: Path,
        report: Report | None = None,
    ) -> Lab:
        """Make a lab; its files go to `directory`, by default into its home.

        Raises MendHost C601 when it is up already, C606 when a part of it does not start,
        C608 without root; RefusedByPolicy C609 when a file would be overwritten. After any
        error nothing of it is left.
        """
        need_root()
        with locked_home(spec.name) as home:
            _make_way(spec.name)
            try:
                with step(report, "files", f"{spec.hops} hops, {spec.servers} servers"):
                    state = prepare(spec, directory or home, wireguard_go)
                state = build(state, report)
            except BaseException:
                clear(spec.name)
                raise
        return cls(state)

    @classmethod
    def load(cls, name: str) -> Lab:
        """The lab of this name, complete or not. Raises MendFile C602 when there is none."""
        return cls(load_state(name))

    def down(self) -> None:
        """Remove everything; see `remove`."""
        remove(self.name)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def state(self) -> State:
        """As it is written down now, by whichever process changed it last."""
        return load_state(self.name)

    @property
    def chain_file(self) -> Path:
        return self.directory / "chain.yaml"

    @property
    def environ(self) -> dict[str, str]:
        """What makes chainctl keep its things in this lab."""
        return {
            "CHAINCTL_RUN_DIR": str(self.home / "run"),
            "CHAINCTL_STATE_DIR": str(self.home / "state"),
        }

    def popen(self, where: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a place, with `environ`; `options` as for Popen.

        The pid is the program's own. Raises MendFile C603 for a place that is not there.
        """
        command = namespaces.enter(self.namespace(where), argv)
        environ = {**os.environ, **self.environ, **(options.pop("env", None) or {})}
        return subprocess.Popen(command, env=environ, **options)

    def run(
        self, where: str, argv: Sequence[str], *, timeout: float, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; its status is the caller's to judge."""
        with self.popen(
            where,
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def ask(
        self, where: str = "client", *, resolver: str, timeout: float = 3.0
    ) -> dict[str, dict[str, Any]]:
        """Which source the target sees: {"web": {"source", "ms"} or {"error"}, "dns": …}."""
        argv = [sys.executable, "-I", str(PROGRAMS / "ask.py"), str(TARGET.ip), resolver]
        done = self.run(where, [*argv, str(timeout)], timeout=3 * timeout + 10)
        answer: dict[str, dict[str, Any]] = json.loads(done.stdout)
        return answer

    def namespace(self, where: str) -> str:
        """Its name for `ip netns`."""
        return self.layout.namespace(self.layout.place(where).name)

    def server(self, which: int | str) -> Server:
        """By number from 1 or by name. Raises MendFile C603."""
        return Server(self, self.layout.server(which))

    @property
    def servers(self) -> tuple[Server, ...]:
        return tuple(Server(self, plan) for plan in self.layout.servers)

    def set_delay(self, server: int | str, rtt_ms: float) -> None:
        """Add this much to the round trip of the server, from now on."""
        self._set_line(server, rtt_ms=rtt_ms)

    def set_loss(self, server: int | str, percent: float) -> None:
        """Lose this share of the packets to the server, and of those from it."""
        self._set_line(server, loss_percent=percent)

    def set_one_way(self, server: int | str, on: bool) -> None:
        """The server hears everything; nothing it sends arrives."""
        self._set_line(server, one_way=on)

    def set_uplink(self, up: bool) -> None:
        """Plug the host's line to the internet in or out, on the far side."""
        place = self.layout.place("internet")
        script = f"ip link set host {'up' if up else 'down'}\n"
        if up:  # Routes through a gateway went away with the link.
            script += "".join(f"ip route replace {route}\n" for route in place.routes)
        with self._change() as state:
            namespaces.run_in(self.namespace("internet"), script)
            save_state(replace(state, uplink=up))

    @contextmanager
    def _change(self) -> Iterator[State]:
        """The state as it is, and nobody else changes the lab meanwhile."""
        self.state  # noqa: B018 (a lab that is gone is not to get a new home)
        with locked_home(self.name):
            yield self.state

    def _set_line(self, which: int | str, **changes: Any) -> None:
        plan = self.layout.server(which)
        with self._change() as state:
            line = replace(state.lines.get(plan.name, Line()), **changes)
            save_state(draw_lines(replace(state, lines={**state.lines, plan.name: line})))


class Server:
    """One VPN server of a lab, to be broken and mended."""

    def __init__(self, lab: Lab, plan: ServerPlan) -> None:
        self.lab = lab
        self.plan = plan
        self.name = plan.name

    @property
    def process(self) -> Process:
        return self.lab.state.processes[self.name]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def line(self) -> Line:
        """What is wrong with the way to it."""
        return self.lab.state.lines.get(self.name, Line())

    @property
    def profile(self) -> Path:
        """The file in its hop's pool."""
        return self.lab.directory / providers.profile_path(self.plan)

    @property
    def condition(self) -> str:
        """`running`, `frozen` or `dead`."""
        process = self.process
        if process.frozen:
            return "frozen"
        return "running" if process.alive else "dead"

    def kill(self) -> None:
        """Its machine stays and answers port unreachable."""
        self.process.kill()

    def freeze(self) -> None:
        """A black hole: it takes everything and answers nothing."""
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()

    def restart(self, *lines: str) -> None:
        """Start it anew, with the keys it had; kills it first if it runs.

        `lines`: what an OpenVPN server's configuration has more than usual, from now on.
        """
        with self.lab._change() as state:
            self.process.kill()
            state = replace(state, extra={**state.extra, self.name: list(lines)})
            started = start_server(state, self.plan)
            save_state(replace(state, processes={**state.processes, self.name: started}))


def _make_way(name: str) -> None:
    """Refuse where a lab is up; clear away one whose making was cut short."""
    if (home_of(name) / "state.json").exists() and load_state(name).complete:
        raise MendHost("C601", f"the lab {name!r} is up", hint=f"chainctl lab down {name}")
    clear(name, keep_home=True)
