"""`serve`: the supervisor in this process."""

from __future__ import annotations

import click

from chainctl.settings import Settings


@click.command()
@click.option("--until-idle", is_flag=True, help="End when the last chain is taken down.")
def serve(until_idle: bool) -> None:
    """Run the supervisor in this process; SIGTERM ends it and leaves every chain as it is.

    Without a supervisor the gate of every chain shuts by itself within seconds.
    """
    from chainctl import daemon

    daemon.serve(Settings.load(), until_idle=until_idle)
