"""`chainctl doctor`: what this machine has and lacks for a chain, in a list to act on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import click

from chainctl.cli.output import print_json
from chainctl.model.doctor import assess, assess_lan, exit_status
from chainctl.model.findings import Finding, Level, Wish

_COLOURS = {Level.OK: "green", Level.NOTE: "blue", Level.WARNING: "yellow", Level.BLOCKS: "red"}


def _interface(_: click.Context, __: click.Parameter, value: str | None) -> IPv4Interface | None:
    try:
        return IPv4Interface(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(f"{error}; expected for example 192.168.10.254/24") from None


@click.command()
@click.argument(
    "chain_file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--lan", metavar="INTERFACE", help="Look at this LAN and listen there for 1.5 s.")
@click.option(
    "--address",
    metavar="ADDRESS/PREFIX",
    callback=_interface,
    help="The gateway's address on the LAN.",
)
@click.option("--all", "show_all", is_flag=True, help="Also list what is fine.")
@click.option("--json", is_flag=True, help="The findings as JSON (docs/doctor.md).")
@click.pass_context
def doctor(
    ctx: click.Context,
    chain_file: Path | None,
    lan: str | None,
    address: IPv4Interface | None,
    show_all: bool,
    json: bool,
) -> None:
    """Check what this machine has and lacks for a chain.

    Nothing is changed. What the kernel can do is tried in a network namespace that is thrown
    away at once. With CHAIN_FILE or --lan it asks on that LAN for IPv6 routers, and for
    holders of the gateway's address. Exit status: 0 nothing worse than notes, 1 warnings,
    3 this host cannot.
    """
    from chainctl.net.facts import read_facts, read_lan

    wish, *others = _wishes(chain_file, lan, address)
    facts = read_facts(wish.lan, wish.address.ip if wish.address else None)
    findings = [*assess(facts, wish)]
    for other in others:
        heard = read_lan(facts.network, other.lan, other.address.ip if other.address else None)
        findings += assess_lan(facts.network, heard, other)
    status = exit_status(findings)
    if json:
        print_json(
            {
                "exit_status": status,
                "kernel": facts.host.release,
                "findings": [_describe(finding) for finding in findings],
            }
        )
    else:
        _print(findings, show_all)
    ctx.exit(status)


def _wishes(chain_file: Path | None, lan: str | None, address: IPv4Interface | None) -> list[Wish]:
    """What the file says, one for each LAN, and above it what the options say of the only one."""
    wishes = [Wish()] if chain_file is None else _wishes_of(chain_file)
    if lan is None and address is None:
        return wishes
    wish = wishes[0]
    return [dataclasses.replace(wish, lan=lan or wish.lan, address=address or wish.address)]


def _wishes_of(chain_file: Path) -> list[Wish]:
    from chainctl.spec.chain_file import load_chain_file

    spec = load_chain_file(chain_file)
    return [
        Wish(
            lan=lan.interface,
            address=lan.address,
            wan=spec.wan.interface,
            hops=len(spec.hops),
            wires=spec.wires,
            tunnels=tuple(address for profile in spec.profiles for address in profile.addresses),
        )
        for lan in spec.lans
        if not (lan.mode and lan.mode.own)
    ]


def _describe(finding: Finding) -> dict[str, Any]:
    return vars(finding) | {"level": finding.level.name.lower()}


def _print(findings: Sequence[Finding], show_all: bool) -> None:
    fine = [finding for finding in findings if finding.level is Level.OK]
    shown = [finding for finding in findings if show_all or finding.level is not Level.OK]
    width = max((len(finding.about) for finding in shown), default=0)
    for finding in sorted(shown, key=lambda finding: -finding.level):
        level = click.style(f"{finding.level.name.lower():8}", fg=_COLOURS[finding.level])
        code = f"[{finding.code}] " if finding.code else ""
        click.echo(f"{level}{finding.about:{width}}  {code}{finding.text}")
        if finding.hint:
            click.echo(f"{'':{8 + width}}  -> {finding.hint}")
    if not show_all:
        rest = " and nothing else" if not shown else "; --all lists them"
        click.echo(f"{len(fine)} checks passed{rest}.")
