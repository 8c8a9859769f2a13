"""`chainctl lab`: make, use, break and remove a small internet in network namespaces."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chainctl.cli.output import print_json, tick
from chainctl.errors import MendFile

if TYPE_CHECKING:
    from chainctl.lab.lab import Lab

_DEFAULT_NAME = "lab"
_name_argument = click.argument("name", default=_DEFAULT_NAME, required=False)
_name_option = click.option("--lab", "name", default=_DEFAULT_NAME, help="Which lab.")
_json_option = click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")


@click.group()
def lab() -> None:
    """A small fake internet in network namespaces."""


@lab.command()
@_name_argument
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="For the chain file.")
@click.option(
    "--hops",
    default="3",
    show_default=True,
    help="How many, or how each is reached, guard first: wg,udp,tcp (the last two by OpenVPN).",
)
@click.option("--spares", default=2, show_default=True, help="More servers, for the pools.")
@click.option("--clients", default=1, show_default=True, help="Devices on the LAN.")
@click.option("--devices", default=2, show_default=True, help="Key pairs per server.")
@click.option("--rtt", "rtt_ms", default=0.0, help="Milliseconds, to every server and back.")
@click.option("--loss", "loss_percent", default=0.0, help="Percent, to and from every server.")
@click.option("--wan-mtu", default=1500, show_default=True, help="Of the host's uplink itself.")
@click.option("--path-mtu", type=int, help="Of the line behind a modem, 1492 for PPPoE.")
@click.option("--no-icmp", is_flag=True, help="The modem does not say what was too big.")
@click.option("--no-offload", is_flag=True, help="Every frame on a cable is one packet.")
@click.option("--wireguard-go", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_json_option
def up(
    directory: Path | None,
    hops: str,
    no_icmp: bool,
    no_offload: bool,
    wireguard_go: Path | None,
    as_json: bool,
    **spec: Any,
) -> None:
    """Make the lab NAME, with a chain file and the servers' profiles."""
    from chainctl.lab.lab import Lab
    from chainctl.lab.layout import LabSpec
    from chainctl.lab.wireguard_go import find_wireguard_go
    from chainctl.settings import Settings

    via = "" if hops.isdigit() else hops
    spec["hops"] = int(hops) if hops.isdigit() else hops.count(",") + 1
    asked = LabSpec(icmp=not no_icmp, offload=not no_offload, via=via, **spec)
    made = Lab.create(
        asked,
        directory,
        wireguard_go=wireguard_go or find_wireguard_go(Settings.load().image_dir),
        report=None if as_json else _print_step,
    )
    if as_json:
        print_json(_describe(made))
        return
    option = "" if asked.name == _DEFAULT_NAME else f" {asked.name}"
    click.echo(f"\nNext: chainctl lab run --on host{option} -- chainctl up {made.chain_file}")
    click.echo(f"      chainctl lab ask{option}")
    click.echo(f"      chainctl lab down{option}")


@lab.command()
@_name_argument
@click.option("--all", "every", is_flag=True, help="All labs of this machine.")
def down(name: str, every: bool) -> None:
    """Remove the lab NAME and everything in it; a chain that runs there as well."""
    from chainctl.lab.clearing import remove
    from chainctl.lab.state import all_names

    for each in all_names() if every else [name]:
        click.echo(f"{tick(True)} {each} " + ("is gone" if remove(each) else "was not there"))


@lab.command()
@_name_argument
@_json_option
def status(name: str, as_json: bool) -> None:
    """Say which places the lab NAME has, and how its servers are."""
    from chainctl.lab.lab import Lab

    facts = _describe(Lab.load(name))
    if as_json:
        print_json(facts)
        return
    state = "up" if facts["complete"] else "half made; remove it with: chainctl lab down"
    click.echo(f"{name}  {state}  chain file {facts['chain_file']}")
    click.echo(f"places  {'  '.join(facts['namespaces'])}")
    for server in facts["servers"]:
        click.echo(
            f"{server['name']:<9} {server['condition']:<8} {server['endpoint']:<18} "
            f"hop {server['hop']}  {server['label']}  {_line_words(server['line'])}"
        )


class _CommandAfterDashes(click.Command):
    """`[OPTIONS] [NAME] -- CMD…`: click itself forgets where the dashes were."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.obj = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


@lab.command(cls=_CommandAfterDashes, options_metavar="[OPTIONS]")
@_name_argument
@click.option("--on", "where", default="client", show_default=True, help="host, target, server1…")
@click.pass_context
def run(ctx: click.Context, name: str, where: str) -> None:
    """Run what stands after -- in a place of the lab NAME; exits with its status."""
    from chainctl.lab.lab import Lab

    if not ctx.obj:
        raise click.UsageError("put the command after --, for example: chainctl lab run -- id")
    with Lab.load(name).popen(where, ctx.obj) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # The program got it too and decides what it means.
            status = process.wait()
    sys.exit(status if status >= 0 else 128 - status)


@lab.command()
@_name_argument
@click.option("--on", "where", default="client", show_default=True)
@click.option("--resolver", help="Whom to ask for DNS; the chain's gateway for a client.")
@_json_option
def ask(name: str, where: str, resolver: str | None, as_json: bool) -> None:
    """Ask the target which source it sees, by HTTP and by DNS."""
    from chainctl.lab.lab import Lab
    from chainctl.lab.layout import GATEWAY, TARGET

    default = GATEWAY if where.startswith("client") else TARGET
    answers = Lab.load(name).ask(where, resolver=resolver or str(default.ip))
    if as_json:
        print_json(answers)
    else:
        for what, answer in answers.items():
            words = answer.get("error") or f"the target sees {answer['source']}, {answer['ms']} ms"
            click.echo(f"{tick('error' not in answer)} {what}  {words}")
    sys.exit(any("error" in answer for answer in answers.values()))


@lab.command()
@click.argument("server")
@click.argument("rtt", metavar="MS")
@_name_option
def delay(server: str, rtt: str, name: str) -> None:
    """Add MS milliseconds to the round trip of SERVER."""
    from chainctl.lab.lab import Lab

    Lab.load(name).set_delay(server, _number(rtt, "ms"))


@lab.command()
@click.argument("server")
@click.argument("percent")
@_name_option
def loss(server: str, percent: str, name: str) -> None:
    """Lose PERCENT of the packets to SERVER, and of those from it."""
    from chainctl.lab.lab import Lab

    Lab.load(name).set_loss(server, _number(percent, "%"))


@lab.command()
@click.argument("server")
@click.argument("what", type=click.Choice(["kill", "freeze", "thaw", "restart", "mute", "unmute"]))
@_name_option
def server(server: str, what: str, name: str) -> None:
    """Break or mend SERVER.

    A killed one refuses, a frozen one is a black hole, a mute one hears but is not heard.
    """
    from chainctl.lab.lab import Lab

    one = Lab.load(name)
    match what:
        case "kill":
            one.server(server).kill()
        case "freeze":
            one.server(server).freeze()
        case "thaw":
            one.server(server).thaw()
        case "restart":
            one.server(server).restart()
        case _:
            one.set_one_way(server, what == "mute")


@lab.command()
@click.argument("state", type=click.Choice(["up", "down"]))
@_name_option
def uplink(state: str, name: str) -> None:
    """Plug the host's line to the internet in or out."""
    from chainctl.lab.lab import Lab

    Lab.load(name).set_uplink(state == "up")


def _print_step(step: str, what: str, seconds: float) -> None:
    click.echo(f"{tick(True)} {step:<8} {what:<32} {1000 * seconds:5.0f} ms")


def _describe(one: Lab) -> dict[str, Any]:
    state = one.state
    return {
        "name": one.name,
        "complete": state.complete,
        "directory": str(one.directory),
        "chain_file": str(one.chain_file),
        "environ": one.environ,
        "namespaces": [one.namespace(place.name) for place in one.layout.places],
        "uplink": state.uplink,
        "servers": [
            {
                "name": each.name,
                "label": each.plan.label,
                "hop": each.plan.hop,
                "endpoint": f"{each.plan.uplink.ip}:{each.plan.port}",
                "profile": str(each.profile),
                "condition": each.condition,
                "pid": each.pid,
                "line": asdict(each.line),
            }
            for each in (one.servers if state.complete else ())
        ],
    }


def _line_words(line: dict[str, Any]) -> str:
    words = f"{line['rtt_ms']:g} ms  {line['loss_percent']:g} % lost"
    return f"{words}  mute" if line["one_way"] else words


def _number(text: str, unit: str) -> float:
    """`200`, `200ms`; raises MendFile C604."""
    if not re.fullmatch(rf"\d+(\.\d+)?({unit})?", text):
        raise MendFile("C604", f"{text!r} is no number of {unit}")
    return float(text.removesuffix(unit))
