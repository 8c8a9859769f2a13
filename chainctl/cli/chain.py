"""`plan`, `up`, `down`, `status`, `close`, `open`: requests to the supervisor, printed."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from chainctl.api import client
from chainctl.cli.output import print_json, tick
from chainctl.errors import LookAgain, MendFile, MendHost, RefusedByPolicy
from chainctl.settings import Settings

Facts = dict[str, Any]

_NOT_HEALTHY = 1
_PANIC = 3.0
"""Seconds a supervisor may take to shut a gate; then the command does it."""
_RECENT = 600
"""Seconds for which a repair is worth a line."""

_json = click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
_file = click.argument(
    "file", default="chain.yaml", type=click.Path(path_type=Path, dir_okay=False)
)
_chain = click.argument("chain", required=False)


@click.command()
@_file
@click.option("--foreground", is_flag=True, help="Keep the supervisor in this process.")
@_json
def up(file: Path, foreground: bool, as_json: bool) -> None:
    """Bring the chain of FILE up; open it when every hop is proved.

    Run it again after changing the file: only what changed is touched.
    """
    needs_root()
    path = _existing(file)
    settings = Settings.load()
    wish = {"do": "up", "file": path}
    if foreground:
        _serve_here(settings, wish, as_json)
        return
    try:
        chains = request(settings, wish, as_json)
    except client.NotRunning:
        # Nor is one that was about to end: its last chain went down, or the first was refused.
        client.start(settings)
        chains = request(settings, wish, as_json)
    report_chains(chains, as_json)


@click.command()
@_chain
@_json
def down(chain: str | None, as_json: bool) -> None:
    """Take CHAIN down (all chains when none is named) and leave the machine as it was."""
    needs_root()
    settings = Settings.load()
    wish = {"do": "down", "chains": [] if chain is None else [chain]}
    if client.is_running(settings):
        names = request(settings, wish, as_json)["down"]
    else:
        names = _without_supervisor(settings, wish, as_json)["down"]
    if as_json:
        print_json({"down": names})
    elif not names:
        click.echo("There is no chain.")
    else:
        click.echo(f"{', '.join(names)} down. This machine is as it was before.")


@click.command()
@_chain
@click.option("-w", "--watch", is_flag=True, help="Again every second, until interrupted.")
@_json
def status(chain: str | None, watch: bool, as_json: bool) -> None:
    """Say whether CHAIN is open, and what each hop does."""
    needs_root()
    settings = Settings.load()
    if not watch:
        report_chains(_status(settings, chain or ""), as_json)
        return
    with suppress(KeyboardInterrupt):
        while True:
            chains = _status(settings, chain or "")
            if not as_json:
                click.clear()
            report_chains(chains, as_json, exit_by_health=False)
            time.sleep(1)


@click.command()
@_chain
@_json
def close(chain: str | None, as_json: bool) -> None:
    """Shut the gate of CHAIN now; it stays shut over restarts, until `open`."""
    _gate("close", chain, as_json)


@click.command(name="open")
@_chain
@_json
def open_(chain: str | None, as_json: bool) -> None:
    """Let traffic through CHAIN again, once every hop is proved."""
    _gate("open", chain, as_json)


@click.command()
@_file
@_json
def plan(file: Path, as_json: bool) -> None:
    """Show what `up` would change for FILE, and change nothing."""
    needs_root()
    path = _existing(file)
    settings = Settings.load()
    wish = {"do": "plan", "file": path}
    if client.is_running(settings):
        facts = request(settings, wish, as_json)
    else:
        facts = _without_supervisor(settings, wish, as_json)
    if as_json:
        print_json(facts)
        return
    for line in facts["lines"]:
        click.echo(line)


def _gate(do: str, chain: str | None, as_json: bool) -> None:
    needs_root()
    settings = Settings.load()
    name = chain or only_chain(settings)
    wish = {"do": do, "chain": name}
    if do == "close" and not client.is_running(settings):
        # The panic button: shut at once, and still shut when a supervisor comes back.
        chains = _without_supervisor(settings, wish, as_json)
    else:
        try:
            patience = _PANIC if do == "close" else client.PATIENCE
            chains = request(settings, wish, as_json, patience=patience)
        except client.NotAnswering as silent:
            if do != "close":
                raise
            chains = _close_alone(settings, name, silent)
    report_chains(chains, as_json, exit_by_health=do == "open")


def only_chain(settings: Settings) -> str:
    names = [entry["chain"] for entry in _status(settings, "")]
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise MendFile("C501", "no chain is up", hint="chainctl up")
    raise MendFile("C507", f"say which chain: {', '.join(names)}")


def one_that_is_up(settings: Settings, name: str, as_json: bool) -> Facts:
    """What `status` says of it. Raises RefusedByPolicy C501."""
    found: list[Facts] = request(settings, {"do": "status", "chain": name}, as_json)
    if not found:
        raise RefusedByPolicy("C501", f"the chain {name} is not up", hint="chainctl up")
    return found[0]


def request(
    settings: Settings, wish: Facts, as_json: bool, *, patience: float = client.PATIENCE
) -> Any:
    """Ask the supervisor and print progress; what it refuses is printed and ends the command."""
    try:
        progress = _silent if as_json else _print_step
        return client.ask(settings, wish, progress, patience=patience)
    except client.Reported as error:
        _report_failure(error.facts, as_json)
        raise click.exceptions.Exit(error.exit_status) from None


def _without_supervisor(settings: Settings, wish: Facts, as_json: bool) -> Any:
    """The same code in this process; it ends with the command."""
    from chainctl import daemon

    def send(message: Facts) -> None:
        if not as_json:
            _print_step(message["progress"])

    with daemon.supervisor(settings) as running:
        try:
            return daemon.answer(running, wish, send)
        except Exception as error:
            facts = daemon.describe_error(error)
            _report_failure(facts, as_json)
            raise click.exceptions.Exit(facts["exit_status"]) from None


def _serve_here(settings: Settings, wish: Facts, as_json: bool) -> None:
    from chainctl import daemon

    def bring_up(running: Any) -> None:
        try:
            chains = daemon.answer(
                running, wish, lambda m: None if as_json else _print_step(m["progress"])
            )
            report_chains(chains, as_json, exit_by_health=False)
        except Exception as error:
            facts = daemon.describe_error(error)
            _report_failure(facts, as_json)
            if running.idle:
                raise click.exceptions.Exit(facts["exit_status"]) from None

    daemon.serve(settings, then=bring_up)


def _status(settings: Settings, chain: str) -> list[Facts]:
    try:
        answer: list[Facts] = client.ask(settings, {"do": "status", "chain": chain}, _silent)
        return answer
    except client.NotAnswering as silent:
        return _status_alone(settings, chain, silent)
    except LookAgain as error:
        if error.code != "C502":
            raise
        return _status_alone(settings, chain, error)


def _status_alone(settings: Settings, chain: str, why: LookAgain) -> list[Facts]:
    from chainctl.supervisor import alone

    return alone.status(settings, chain, why)


def _close_alone(settings: Settings, chain: str, why: LookAgain) -> list[Facts]:
    from chainctl.supervisor import alone

    alone.close(settings, chain)
    return alone.status(settings, chain, why)


def _print_step(step: Facts) -> None:
    if step["step"] == "note":
        click.echo(f"Note {_near(step['text'])}")
        return
    took = step["seconds"]
    time_text = f"{took * 1000:.0f} ms" if took < 10 else f"{took:.1f} s"
    ok = not step["text"].endswith("does not answer")
    click.echo(f"{tick(ok)} {step['step']:<9} {step['text']:<48} {time_text:>8}")


def _near(text: str) -> str:
    """Paths below this folder as seen from here: the supervisor is somewhere else."""
    try:
        here = str(Path.cwd()).rstrip("/")
    except OSError:  # It was deleted.
        return text
    return re.sub(rf"(?<!\S){re.escape(here)}/", "", text)


def _silent(step: Facts) -> None:
    """With --json the answer says it all."""


def _report_failure(facts: Facts, as_json: bool) -> None:
    """What, where, then whether anything can leave, then what to run next."""
    if as_json:
        print_json({"error": facts})
        return
    red = click.style("Error", fg="red")
    complaints = facts.get("complaints") or []
    for entry in complaints:
        place = f"{entry['file']}:{entry['line']}:{entry['column']}"
        click.echo(f"{red} [{entry['code']}] {_near(place)} {entry['message']}", err=True)
    if not complaints:
        where = f" ({facts['where']})" if facts.get("where") else ""
        click.echo(f"{red} [{facts['code']}]{where} {facts['message']}", err=True)
    if "still_blocked" in facts:
        click.echo(
            "STILL CLOSED: nothing left this machine."
            if facts["still_blocked"]
            else "POSSIBLY OPEN: unplug the LAN and report this.",
            err=True,
        )
    for hint in sorted({entry["hint"] for entry in complaints if entry["hint"]} | {facts["hint"]}):
        if hint:
            click.echo(f"Run: {hint}" if hint.startswith("chainctl ") else hint, err=True)


def report_chains(chains: list[Facts], as_json: bool, *, exit_by_health: bool = True) -> None:
    if as_json:
        print_json({"chains": chains})
    elif not chains:
        click.echo("No chain is up.   Run: chainctl up chain.yaml")
    else:
        for facts in chains:
            _print_chain(facts)
    if exit_by_health and any(facts["posture"] != "open" for facts in chains):
        raise click.exceptions.Exit(_NOT_HEALTHY)


def _print_chain(facts: Facts) -> None:
    if facts["posture"] == "open":
        proved = facts["proved_seconds_ago"]
        head = [click.style("OPEN", fg="green", bold=True), f"proved {proved:.0f} s ago"]
        if facts["mtu"]:
            head.append(f"MTU {facts['mtu']}")
    else:
        why = facts["why_closed"]
        head = [click.style("CLOSED", fg="red", bold=True), why["text"]]
        if facts["closed_seconds"] is not None:
            head.append(in_words(facts["closed_seconds"]))
    click.echo(f"{facts['chain']}  {'   '.join(head)}")
    hops = facts["hops"]
    if hops:
        rows = [("HOP", "SERVER", "VIA", "SINCE", "RTT", "LOSS", "NEXT", "STATE")]
        rows += [
            (
                hop["hop"],
                hop["server"],
                hop["via"],
                in_words(hop["since_seconds"]),
                "-" if hop["rtt_ms"] is None else f"{hop['rtt_ms']:.0f} ms",
                "-" if hop["loss_percent"] is None else f"{hop['loss_percent']:.0f} %",
                _next(hop),
                f"{_state(hop)}  {hop['evidence']}".strip(),
            )
            for hop in hops
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo("  ".join(cells).rstrip())
    _print_clients(facts)
    for note in facts.get("notes", ()):
        click.echo(f"Note {note}")
    recent = [entry for entry in facts["repairs"] if entry["seconds_ago"] < _RECENT]
    for entry in recent[-3:]:
        click.echo(f"Note [N501] {entry['text']}; mended {entry['seconds_ago']:.0f} s ago.")
    if len(recent) > 3:
        click.echo(f"     and {len(recent) - 3} more in the last {_RECENT // 60} minutes.")
    if facts["posture"] != "open" and facts["why_closed"]["hint"]:
        hint = facts["why_closed"]["hint"]
        click.echo(f"Next: {hint}")


def _print_clients(facts: Facts) -> None:
    """Who has a name, and ports that lead somewhere; everybody else is a device of the LAN."""
    here = [entry["name"] for entry in facts.get("clients", ()) if entry["here"] and entry["name"]]
    if here:
        click.echo(f"Clients {', '.join(here)}")
    for entry in facts.get("published", ()):
        if entry["to"]:
            at = ", ".join(f"{address}:{entry['port']}" for address in entry["at"])
            kind = "/udp" if entry["protocol"] == "udp" else ""
            click.echo(f"Port {at}{kind} leads to {entry['client']}:{entry['client_port']}")


def _state(hop: Facts) -> str:
    """`FAULT` where nothing is known but silence, else the class of the fault."""
    known = hop["fault"] not in (None, "dead")
    return str(hop["fault"] if known else hop["verdict"]).upper()


def _next(hop: Facts) -> str:
    if hop["draining_seconds"]:
        return f"drains for {in_words(hop['draining_seconds'])}"
    if hop["standby"]:
        return f"standby {hop['standby']} ready"
    if hop["rotates_in_seconds"]:
        return f"rotates in {in_words(hop['rotates_in_seconds'])}"
    left = hop["candidates"]
    return f"{left} other{'s' * (left != 1)}" if left else "no other server"


def in_words(seconds: float) -> str:
    """A duration as `12 d`, `3 h`, `5 min` or `40 s`."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def needs_root() -> None:
    if os.geteuid() != 0:
        raise MendHost("C306", "this needs root", hint="run it again with sudo")


def _existing(file: Path) -> str:
    """From the root, as the supervisor looks for it. Raises MendFile C101."""
    try:
        if file.exists():
            return str(file.absolute())
    except OSError as error:  # A name that is too long, or the current folder was deleted.
        raise MendFile("C101", f"{file}: {error.strerror}") from None
    raise MendFile(
        "C101",
        f"there is no file {file}",
        hint="chainctl init writes one from a folder of profiles",
    )
