"""The `chainctl` command: loads the module of a subcommand when it is called, not before.

Start-up is a budget: `chainctl --help` imports click and nothing else of size.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from chainctl import __version__
from chainctl.errors import ChainctlError

_COMMANDS = {
    "init": ("Write a chain file from an interface and a folder of profiles.", "init"),
    "plan": ("Show what `up` would change, and change nothing.", "chain"),
    "up": ("Bring the chain up; open it when every hop is proved.", "chain"),
    "down": ("Take the chain down and leave the machine as it was.", "chain"),
    "status": ("Say whether the chain is open, and what each hop does.", "chain"),
    "close": ("Shut the gate now; it stays shut until `open`.", "chain"),
    "open": ("Let traffic through again, once every hop is proved.", "chain"),
    "sweep": ("Ask every hop now, and print what was heard.", "look"),
    "explain": ("Say why a chain is as it is, and what led there.", "look"),
    "logs": ("Print what happened.", "look"),
    "run": ("Run a program whose only way out is the chain.", "run"),
    "attach": ("Put a container without network behind the chain.", "run"),
    "rotate": ("Replace the server of a hop by another one of its pool.", "rotate"),
    "serve": ("Run the supervisor in this process.", "serve"),
    "doctor": ("Check what this machine has and lacks for a chain.", "doctor"),
    "demo": ("Show a three-hop chain at work in a lab; leaves nothing behind.", "demo"),
    "drill": ("Break one thing in a lab under traffic, and say what came of it.", "drill"),
    "lab": ("A small fake internet in network namespaces.", "lab"),
    "secrets": ("Look at the files that hold keys: `secrets check FILE`.", "secrets"),
    "images": ("Build and check the images hops run from.", "images"),
}
"""Name: (short help, module of `chainctl.cli` that holds a click command of that name)."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"chainctl.cli.{_COMMANDS[cmd_name][1]}")
        command: click.Command = getattr(module, cmd_name + "_" * (cmd_name == "open"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (text, _) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from chainctl.cli.output import report_error

        try:
            return super().invoke(ctx)
        except ChainctlError as error:
            report_error(error, as_json="--json" in sys.argv)
            ctx.exit(error.exit_status)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chainctl")
def main() -> None:
    """A VPN onion chain and the firewall gateway in front of it."""
