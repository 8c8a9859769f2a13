"""`chainctl secrets`: look at the files that hold keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chainctl.cli.output import describe, print_json
from chainctl.errors import MendFile

if TYPE_CHECKING:
    from chainctl.spec.model import ServerProfile
    from chainctl.spec.profile_file import Explanation
    from chainctl.spec.remarks import Remark


@click.group()
def secrets() -> None:
    """Look at the files that hold keys."""


@secrets.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
@click.pass_context
def check(ctx: click.Context, files: tuple[Path, ...], as_json: bool) -> None:
    """Say of each line of a profile what becomes of it.

    Ends with 0 when every profile can be used, else with 2.
    """
    from chainctl.spec.profile_file import explain

    found = [explain(file) for file in files]
    complaints = [complaint for each in found for complaint in each.complaints]
    if as_json:
        facts: dict[str, Any] = {"files": [_facts(each) for each in found]}
        if complaints:
            facts["error"] = describe(MendFile.of(complaints))
        print_json(facts)
    else:
        for each in found:
            _print(each)
    if complaints:
        ctx.exit(MendFile.exit_status)


def _print(found: Explanation) -> None:
    kinds = {
        "wireguard": "WireGuard profile, ",
        "openvpn": "OpenVPN profile, ",
        "login": "username and password, ",
        "": "",
    }
    verdict = "usable" if found.usable else click.style("REFUSED", fg="red")
    click.echo(f"{click.format_filename(found.file)}: {kinds[found.kind]}{verdict}")
    width = max((len(remark.word) for remark in found.remarks), default=0)
    for remark in found.remarks:
        click.echo(f"{remark.place.line:5}  {remark.word:<{width}}  {_said(remark)}".rstrip())
    for server in found.servers:
        country = f"  {server.labels.country}" if server.labels.country else ""
        click.echo(f"Server {server.name}  {server.endpoint}  {_via(server)}{country}")
    if found.login.value == "missing":
        beside = found.file.with_name("auth.txt")
        click.echo(
            "It asks for username and password: write them, a line each, into "
            f"{click.format_filename(beside)}"
        )


def _said(remark: Remark) -> str:
    verdict = remark.verdict.value
    if verdict == "used":
        return f"used     {remark.message}".rstrip()
    shown = click.style("REFUSED", fg="red") if verdict == "refused" else "dropped"
    return f"{shown}  [{remark.code}] {remark.message}"


def _via(server: ServerProfile) -> str:
    from chainctl.model.parts import TCP

    return "tcp" if getattr(server, "protocol", None) == TCP else "udp"


def _facts(found: Explanation) -> dict[str, Any]:
    return {
        "file": str(found.file),
        "kind": found.kind,
        "usable": found.usable,
        "login": found.login.value,
        "lines": [
            {
                "line": remark.place.line,
                "column": remark.place.column,
                "word": remark.word,
                "verdict": remark.verdict.value,
                "code": remark.code,
                "class": remark.kind,
                "message": remark.message,
            }
            for remark in found.remarks
        ],
        "candidates": [
            {
                "name": server.name,
                "endpoint": str(server.endpoint),
                "protocol": _via(server),
                "country": server.labels.country,
            }
            for server in found.servers
        ],
    }
