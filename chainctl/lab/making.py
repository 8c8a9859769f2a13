"""Making a lab's parts: its files, its places, and the programs that run there."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from chainctl.errors import MendHost, RefusedByPolicy
from chainctl.lab import namespaces, openvpn, processes, providers, wireguard_go
from chainctl.lab.layout import TARGET, LabSpec, Layout, ServerPlan
from chainctl.lab.processes import Process
from chainctl.lab.state import Line, State, home_of, save_state

Report = Callable[[str, str, float], None]
"""Called after each step with its name, what was done, and the seconds it took."""

PROGRAMS = Path(__file__).parent / "programs"
UAPI_DIR = Path("/run/wireguard")
"""Where every wireguard-go of the machine has its control socket."""


def need_root() -> None:
    if os.geteuid():
        raise MendHost("C608", "a lab needs root: it makes network namespaces", hint="use sudo")


def prepare(spec: LabSpec, directory: Path, wireguard_go: Path) -> State:
    """Everything that is files; written down before it is done."""
    home = home_of(spec.name)
    layout = Layout(spec)
    by_wireguard = [plan for plan in layout.servers if plan.via == "wg"]
    by_openvpn = [plan for plan in layout.servers if plan.via != "wg"]
    authority = openvpn.make_authority() if by_openvpn else None
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda plan: providers.make_keys(plan, spec.devices), by_wireguard)
        signed = pool.map(partial(openvpn.make_openvpn_keys, authority=authority), by_openvpn)
        keys = {plan.name: pair for plan, pair in zip(by_wireguard, made, strict=True)}
        openvpn_keys = {plan.name: own for plan, own in zip(by_openvpn, signed, strict=True)}
    files = providers.render_files(layout, keys, openvpn_keys, authority)
    directory = directory.absolute()
    for path in files:
        if (directory / path).exists():
            raise RefusedByPolicy(
                "C609", f"{directory / path} exists", hint="name another folder with --dir"
            )
    engine = wireguard_go.absolute()
    state = State(
        spec,
        directory,
        not directory.exists(),
        tuple(files),
        engine,
        keys=keys,
        openvpn_keys=openvpn_keys,
        authority=authority,
    )
    save_state(state)
    for folder in ("log", "run", "state"):
        (home / folder).mkdir(mode=0o700)
    for path, text in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).touch(mode=0o600)
        (directory / path).write_text(text, newline="")
    return state


def build(state: State, report: Report | None) -> State:
    """Everything that is kernel objects and processes."""
    layout = Layout(state.spec)
    with step(report, "places", f"{len(layout.places)} namespaces"):
        namespaces.make(layout)
    engines = "wireguard-go, openvpn" if state.openvpn_keys else "wireguard-go"
    with step(report, "servers", f"{engines}, and the target"), ThreadPoolExecutor(8) as pool:
        target = pool.submit(_start_target, layout)
        started = pool.map(lambda plan: (plan.name, start_server(state, plan)), layout.servers)
        found = {**dict(started), "target": target.result()}
    state = replace(state, processes=found, complete=True)
    line = Line(state.spec.rtt_ms, state.spec.loss_percent)
    if not line.plain:
        with step(report, "lines", f"{line.rtt_ms:g} ms, {line.loss_percent:g} % lost each way"):
            lines = {plan.name: line for plan in layout.servers}
            state = draw_lines(replace(state, lines=lines))
    save_state(state)
    return state


@contextmanager
def step(report: Report | None, step: str, what: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    if report is not None:
        report(step, what, time.monotonic() - begun)


def _start_target(layout: Layout) -> Process:
    argv = [sys.executable, "-I", str(PROGRAMS / "target.py"), str(TARGET.ip)]
    return _start_program(layout, "target", "target", argv)


def _start_program(layout: Layout, name: str, place: str, argv: list[str]) -> Process:
    command = namespaces.enter(layout.namespace(place), [*argv, str(processes.READY)])
    log_path = home_of(layout.spec.name) / "log" / f"{name}.log"
    return processes.spawn_and_wait(name, command, log_path)


def start_server(state: State, plan: ServerPlan) -> Process:
    layout = Layout(state.spec)
    namespace = layout.namespace(plan.name)
    log_path = home_of(state.spec.name) / "log" / f"{plan.name}.log"
    if plan.via != "wg":
        return _start_openvpn(state, plan, namespace, log_path)
    link = uapi_name(state.spec.name, plan.number)
    uapi = UAPI_DIR / f"{link}.sock"
    uapi.unlink(missing_ok=True)
    argv = [*wireguard_go.command(state.wireguard_go), "--foreground", link]
    process = processes.spawn(namespaces.enter(namespace, argv), log_path)
    processes.wait_for_socket(plan.name, uapi, process, log_path)
    config = providers.render_server(plan, state.keys[plan.name])
    namespaces.run_in(namespace, namespaces.render_tunnel(link, plan.tunnel, config))
    return process


def _start_openvpn(state: State, plan: ServerPlan, namespace: str, log_path: Path) -> Process:
    assert state.authority is not None, "it has signed for the server"
    keys, home = state.openvpn_keys[plan.name], home_of(state.spec.name)
    more = list(state.extra.get(plan.name, ()))
    if openvpn.asks_for_login(plan):
        check = home / f"{plan.name}.login"
        check.touch(mode=0o700)
        check.write_text(openvpn.render_login_check(keys))
        more.insert(0, f"auth-user-pass-verify {check} via-file")
    config = home / f"{plan.name}.conf"
    config.touch(mode=0o600)
    config.write_text(openvpn.render_server(plan, keys, state.authority, more=more))
    log_path.write_text("")
    argv = [str(openvpn.find_openvpn()), "--config", str(config)]
    process = processes.spawn(namespaces.enter(namespace, argv), log_path)
    processes.wait_for_words(plan.name, "Initialization Sequence Completed", process, log_path)
    return process


def uapi_name(lab: str, number: int) -> str:
    """The name a server's device is born with: its control socket lies in a folder of the
    whole machine and keeps it when the device is renamed."""
    return f"lab{hashlib.blake2s(lab.encode(), digest_size=4).hexdigest()}{number}"


def draw_lines(state: State) -> State:
    """Make the box do what `lines` says, starting it when it is needed and not there."""
    layout = Layout(state.spec)
    crooked = [plan for plan in layout.servers if not state.lines.get(plan.name, Line()).plain]
    internet = layout.namespace("internet")
    box = state.processes.get("box")
    control = home_of(state.spec.name) / "box.sock"
    if crooked and (box is None or not box.alive):
        control.unlink(missing_ok=True)
        argv = [sys.executable, "-I", str(PROGRAMS / "box.py"), str(control)]
        box = _start_program(layout, "box", "internet", argv)
        namespaces.run_in(internet, namespaces.render_box_link())
        state = replace(state, processes={**state.processes, "box": box})
    if box is not None and box.alive:
        _instruct(control, crooked, state.lines)
    rules = namespaces.render_box_rules([(plan.name, plan.network) for plan in crooked])
    namespaces.run_in(internet, rules)
    return state


def _instruct(control: Path, crooked: Sequence[ServerPlan], lines: Mapping[str, Line]) -> None:
    orders = {}
    for plan in crooked:
        line = lines[plan.name]
        share = line.loss_percent / 100
        first, second, *_ = str(plan.uplink.ip).split(".")
        orders[f"{first}.{second}"] = (line.rtt_ms / 2000, share, 1.0 if line.one_way else share)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as box:
        box.settimeout(5.0)
        box.connect(str(control))
        box.sendall(json.dumps(orders).encode() + b"\n")
        if box.recv(2) != b"ok":
            raise MendHost("C606", "the lab's delaying box did not take the order")
