"""How facts and errors are printed, the same for every command."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from chainctl.errors import ChainctlError, MendFile


def print_json(value: Any) -> None:
    """One JSON document on standard output, keys in the order given."""
    click.echo(json.dumps(value, indent=2, default=str))


def tick(ok: bool) -> str:
    return click.style("✓", fg="green") if ok else click.style("✗", fg="red")


def report_error(error: ChainctlError, *, as_json: bool = False) -> None:
    """Print an error as design.md wants it read: what, where, and what to run next."""
    if as_json:
        print_json({"error": describe(error)})
        return
    lines = (
        [str(complaint) for complaint in error.complaints] if isinstance(error, MendFile) else []
    )
    for line in lines or [str(error)]:
        click.echo(f"{click.style('Error', fg='red')} {line}", err=True)
    if error.hint:
        click.echo(
            f"Run: {error.hint}" if error.hint.startswith("chainctl ") else error.hint, err=True
        )
    sys.stderr.flush()


def describe(error: ChainctlError) -> dict[str, Any]:
    """The same facts as JSON; docs/json.md lists them."""
    out: dict[str, Any] = {"code": error.code, "message": error.message, "where": error.where}
    out |= {"hint": error.hint, "exit_status": error.exit_status}
    if isinstance(error, MendFile) and error.complaints:
        out["complaints"] = [vars(complaint) for complaint in error.complaints]
    return out
