"""`rotate`: another server for a hop, now."""

from __future__ import annotations

import click

from chainctl.cli import chain as printing
from chainctl.settings import Settings


@click.command()
@click.argument("hop")
@click.argument("chain", required=False)
@click.option("--to", default="", metavar="SERVER", help="This one, of the hop's pool.")
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
def rotate(hop: str, chain: str | None, to: str, as_json: bool) -> None:
    """Replace the server of HOP by another one of its pool.

    The new tunnel comes up beside the old one and has to answer before traffic goes its way;
    when it does not, nothing changes.
    """
    printing.needs_root()
    settings = Settings.load()
    name = chain or printing.only_chain(settings)
    wish = {"do": "rotate", "chain": name, "hop": hop, "to": to}
    printing.report_chains(printing.request(settings, wish, as_json), as_json)
