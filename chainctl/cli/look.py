"""`sweep`, `explain` and `logs`: what a chain does, and why."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from chainctl.api import client
from chainctl.cli import chain as printing
from chainctl.cli.output import print_json
from chainctl.settings import Settings

_STEPS = frozenset({"part_made", "part_changed", "part_removed", "hop_proved"})
"""Kinds of events that say how, not what."""
_EXPLAINED = 12

_chain = click.argument("chain", required=False)
_json = click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")


@click.command()
@_chain
@_json
def sweep(chain: str | None, as_json: bool) -> None:
    """Ask every hop of CHAIN now, and print what was heard."""
    printing.needs_root()
    settings = Settings.load()
    name = chain or printing.only_chain(settings)
    printing.report_chains(
        printing.request(settings, {"do": "sweep", "chain": name}, as_json), as_json
    )


@click.command()
@_chain
@_json
def explain(chain: str | None, as_json: bool) -> None:
    """Say why CHAIN is as it is: posture, each hop's evidence, and what led there."""
    printing.needs_root()
    settings = Settings.load()
    name = chain or printing.only_chain(settings)
    facts = printing.one_that_is_up(settings, name, as_json)
    events = [event for event in _events(settings, name, 400) if event["kind"] not in _STEPS]
    events = events[-_EXPLAINED:]
    if as_json:
        print_json({"chain": facts, "events": events})
        return
    printing.report_chains([facts], as_json, exit_by_health=False)
    for hop in facts["hops"]:
        click.echo(f"\n{hop['hop']}: {_sentence(hop)}")
        for entry in hop["quarantine"]:
            rest = printing.in_words(entry["seconds"])
            until = time.strftime("%H:%M", time.localtime(time.time() + entry["seconds"]))
            why = f" ({entry['why']})" if entry["why"] else ""
            click.echo(f"  {entry['server']} failed{why} and is passed over for {rest}, to {until}")
    clients = facts.get("clients", ())
    if clients:
        click.echo("\nWho uses it:")
    for entry in clients:
        click.echo(_client(entry))
    click.echo("\nWhat happened last:")
    for event in events:
        click.echo(_line(event))


@click.command()
@_chain
@click.option("--hop", default="", help="Only of this hop.")
@click.option(
    "-n",
    "limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="The newest so many.",
)
@click.option("--steps", is_flag=True, help="Also each part made, changed and removed.")
@_json
def logs(chain: str | None, hop: str, limit: int, steps: bool, as_json: bool) -> None:
    """Print what happened to CHAIN (to all, when none is named), oldest first."""
    printing.needs_root()
    found = [
        event
        for event in _events(Settings.load(), chain or "", 20 * limit)
        if hop in ("", event["hop"]) and (steps or event["kind"] not in _STEPS)
    ][-limit:]
    if as_json:
        print_json({"events": found})
        return
    for event in found:
        click.echo(_line(event))


def _events(settings: Settings, chain: str, limit: int) -> list[dict[str, Any]]:
    """From the supervisor, or from the journal's file when none answers."""
    wish = {"do": "events", "chain": chain, "limit": limit}
    if client.is_running(settings):
        with contextlib.suppress(client.NotAnswering):
            answer: list[dict[str, Any]] = printing.request(settings, wish, True)
            return answer
    if not settings.journal_path.exists():
        return []
    from chainctl.store.journal import Journal

    journal = Journal(settings.journal_path)
    try:
        return [
            {"seq": one.seq, "at": one.at, **vars(one.event)}
            for one in journal.events(chain, limit=limit)
        ]
    finally:
        journal.close()


def _sentence(hop: dict[str, Any]) -> str:
    """`41 sent, 0 heard for 1.8 s; guard is fine`, or what is well."""
    if hop["verdict"] == "waiting":
        return f"waits {hop['evidence']}"
    if hop["verdict"] == "fault":
        return str(hop["evidence"])
    left = hop["candidates"]
    wrong = f"; {hop['evidence']}" if hop["evidence"] else ""
    return (
        f"{hop['server']} answers in {hop['rtt_ms'] or 0:.0f} ms, {hop['sent']} asked,"
        f" {hop['heard']} heard{wrong}; {left} other server{'s' * (left != 1)} could take over"
    )


def _client(entry: dict[str, Any]) -> str:
    """`download: container at 172.31.7.2`; who has no name is called by the address."""
    name = entry["name"] or entry["address"]
    container = entry["container"]
    kind = f"{entry['kind']} {container}" if container not in (None, name) else entry["kind"]
    if not entry["here"]:
        return f"{name}: {kind}, not here now"
    return f"{name}: {kind} at {entry['address']}"


def _line(event: dict[str, Any]) -> str:
    at = time.strftime("%d %b %H:%M:%S", time.localtime(event["at"]))
    place = f"{event['chain']}/{event['hop']}" if event["hop"] else event["chain"]
    code = f" [{event['code']}]" if event["code"] else ""
    return f"{at}  {place:<16} {event['kind'].replace('_', ' ')}{code}: {event['text']}"
