"""`run` and `attach`: programs and containers of this machine behind a chain."""

from __future__ import annotations

import os
import pwd
from ipaddress import IPv4Interface
from pathlib import Path

import click

from chainctl.cli import chain as printing
from chainctl.cli.output import print_json
from chainctl.errors import MendFile, RefusedByPolicy
from chainctl.settings import Settings
from chainctl.spec.chain_file import load_chain_file

_chain = click.option("--chain", metavar="NAME", help="Default: the only one that is up.")


@click.command(context_settings={"ignore_unknown_options": True})
@_chain
@click.option("--user", metavar="NAME", help="Run as this user. Default: who called sudo.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(chain: str | None, user: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND in a namespace of its own whose only way out is the chain.

    Ends with COMMAND's exit status. What COMMAND starts stays behind the chain too.
    """
    from chainctl.net.program import ask_only, enter, take_address

    printing.needs_root()
    settings = Settings.load()
    facts = _up(settings, chain)
    name = str(facts["chain"])
    bridge, gateway = _own_network(name, Path(str(facts["file"])))
    folder = settings.run_dir / "programs" / name
    address = take_address(folder, gateway)
    account = _account(user)
    enter(bridge, address, gateway.ip, int(str(facts["mtu"] or 1280)))
    ask_only(gateway.ip, folder)
    if account is not None:
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        # As a shell says it: 127 where there is no such program, 126 where it cannot be run.
        click.echo(f"chainctl run: {command[0]}: {error.strerror}", err=True)
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None


@click.command()
@_chain
@click.argument("container")
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
def attach(chain: str | None, container: str, as_json: bool) -> None:
    """Put CONTAINER, which has `--network none`, behind the chain, now and when it restarts."""
    from chainctl.model.chain import docker_network
    from chainctl.runtime.docker_daemon import Daemon

    printing.needs_root()
    settings = Settings.load()
    facts = _up(settings, chain, as_json=as_json)
    name = str(facts["chain"])
    _own_network(name, Path(str(facts["file"])), docker=True)
    network = docker_network(name)
    address = Daemon(settings.docker_socket).join(container, network)
    if as_json:
        given = None if address is None else str(address)
        print_json({"chain": name, "container": container, "network": network, "address": given})
    else:
        click.echo(f"✓ {container} is behind {name}, and has no other way out")


def _up(settings: Settings, chain: str | None, *, as_json: bool = False) -> dict[str, object]:
    name = chain or printing.only_chain(settings)
    return printing.one_that_is_up(settings, name, as_json)


def _own_network(chain: str, file: Path, *, docker: bool = False) -> tuple[str, IPv4Interface]:
    """Its bridge, and the gateway's address. Raises RefusedByPolicy C564 when there is none."""
    for lan in load_chain_file(file).lans:
        if lan.mode is not None and lan.mode.own and (lan.mode.value == "docker" or not docker):
            return lan.interface, lan.address
    kind = "containers" if docker else "programs of this machine"
    mode = "docker" if docker else "local"
    raise RefusedByPolicy(
        "C564",
        f"the chain {chain} has no network for {kind}",
        hint=f"add one to lan: in {file}: {{mode: {mode}, address: 172.31.7.1/24}}; chainctl up",
    )


def _account(user: str | None) -> pwd.struct_passwd | None:
    """Whom to become; None: stay who we are."""
    if user is None:
        return _caller(os.environ.get("SUDO_UID"))
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise MendFile("C565", f"there is no user {user!r}") from None


def _caller(uid: str | None) -> pwd.struct_passwd | None:
    """Who called sudo; None: nobody did."""
    if uid is None:
        return None
    try:
        return pwd.getpwuid(int(uid))
    except (KeyError, ValueError, OverflowError):
        raise MendFile(
            "C565", f"SUDO_UID={uid} is no user of this machine", hint="name one with --user"
        ) from None
