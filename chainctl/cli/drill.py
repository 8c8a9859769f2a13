"""`drill`: break one thing in a lab, under traffic, and say what came of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from chainctl.cli.output import print_json, tick

if TYPE_CHECKING:
    from chainctl.lab.drill import Result

_KINDS = {
    "kill-server": "the server's VPN is gone, its machine says so",
    "freeze-server": "the server takes everything and answers nothing",
    "cut-server": "the server's line is cut, and nobody says so",
    "one-way": "the server hears everything, nothing it sends arrives",
    "loss": "10 % of the packets are lost, each way: no reason to change it",
    "delay": "200 ms more to the server and back: no reason either",
    "mtu": "the server's line takes packets of up to 600 bytes only",
    "kill-client": "the hop's own VPN client is killed",
    "uplink-flap": "the host's line to the internet is pulled",
}

_OF_AN_EVENT = ("kind", "hop", "code", "text")


@click.command(
    epilog="Kinds: " + "; ".join(f"{kind}: {text}" for kind, text in _KINDS.items()) + "."
)
@click.argument("kind", type=click.Choice(list(_KINDS)), metavar="KIND")
@click.option("--lab", "name", default="lab", show_default=True, help="Which lab.")
@click.option("--hop", default="", help="Which hop; the second one unless named.")
@click.option("--seconds", default=4.0, show_default=True, help="How long at most.")
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
def drill(kind: str, name: str, hop: str, seconds: float, as_json: bool) -> None:
    """Break one thing in a lab whose chain is up, and say what came of it.

    A client floods the lab's target meanwhile, from a connected and an unconnected UDP socket
    and over TCP, and every wire of the lab's internet is watched. Afterwards it is mended.
    Exit status 1 when traffic did not come back, 6 when anything leaked.
    """
    from chainctl.api import client
    from chainctl.lab.drill import Drill
    from chainctl.lab.faults import Kind
    from chainctl.lab.lab import Lab
    from chainctl.settings import Settings

    lab = Lab.load(name)
    settings = Settings.load(lab.environ)
    ask = functools.partial(client.ask, settings, progress=_silent)
    result = Drill(lab, ask).run(Kind(kind), hop, seconds=seconds)
    if as_json:
        print_json(_facts(result))
    else:
        _print(result)
    if result.seen.leaked or result.seen.foreign:
        raise SystemExit(6)
    if not result.whole or result.outage == float("inf") or not result.seen.clean:
        raise SystemExit(1)


def _print(result: Result) -> None:
    report, seen = result.report, result.seen
    click.echo(f"{result.kind.value}  hop {result.hop}, served by {result.server}")
    click.echo(f"detected   {_seconds(result.detected, 'not at all')}")
    if result.outage == 0:
        click.echo("recovered  there was no outage")
    else:
        after = _seconds(result.recovered, "traffic did not come back")
        click.echo(f"recovered  {after}, UDP was silent for {result.outage:.2f} s")
    click.echo(f"lost       {report.lost} of {report.sent} packets")
    stalled = max(connection.stalled for connection in report.busy)
    connections = len(report.connections)
    alive = f"{connections - result.connections_broken} of {connections} alive"
    click.echo(f"TCP        {alive}, nothing came for {stalled:.2f} s at most")
    leaked = sum(seen.leaked.values()) + sum(seen.foreign.values())
    control = "control seen" if seen.control else "CONTROL NOT SEEN: this proves nothing"
    missed = f", {seen.dropped} FRAMES NOT LOOKED AT" if seen.dropped else ""
    click.echo(f"leaked     {leaked} frames ({control}{missed})")
    for flow, frames in {**seen.leaked, **seen.foreign}.items():
        click.echo(f"           {frames} x {flow}")
    if result.events:
        click.echo("What chainctl did:")
    for event in result.events:
        kind = event["kind"].replace("_", " ")
        click.echo(
            f"  {event['after']:5.2f} s  {event['hop'] or 'chain':<8} {kind}: {event['text']}"
        )
    ready = "open, every hop answers" if result.whole else "NOT whole again"
    click.echo(f"{tick(result.whole)} mended after {result.lasted:.1f} s: the chain is {ready}")


def _facts(result: Result) -> dict[str, Any]:
    """Flat, and without infinity, which JSON does not know."""
    report, seen = result.report, result.seen
    leaks = {**seen.leaked, **seen.foreign}
    return {
        "kind": result.kind.value,
        "hop": result.hop,
        "server": result.server,
        "successor": result.successor,
        "detected_seconds": result.detected,
        "recovered_seconds": result.recovered,
        "outage_seconds": None if result.outage == float("inf") else result.outage,
        "lasted_seconds": result.lasted,
        "whole": result.whole,
        "packets_sent": report.sent,
        "packets_lost": report.lost,
        "connections": len(report.connections),
        "connections_broken": result.connections_broken,
        "stalled_seconds": max(connection.stalled for connection in report.busy),
        "leaks": [{"flow": flow, "frames": frames} for flow, frames in leaks.items()],
        "control_seen": seen.control,
        "frames_missed": seen.dropped,
        "events": [
            {"after_seconds": event["after"], **{key: event[key] for key in _OF_AN_EVENT}}
            for event in result.events
        ],
    }


def _seconds(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.2f} s"


def _silent(step: dict[str, Any]) -> None:
    """Questions report no steps."""
