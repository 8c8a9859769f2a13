"""`chainctl init`: a first chain file, from an interface and files of a provider.

It asks nothing and guesses only where there is one answer; what it writes was read back with
all its profiles before a byte of it reached the disk.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import click

from chainctl.cli.output import print_json
from chainctl.errors import MendFile
from chainctl.host.interfaces import read_lan_candidates


class _Hop(NamedTuple):
    name: str
    servers: tuple[str, ...]
    """Patterns, from the working directory."""


@click.command()
@click.option("--name", default="home", show_default=True, help="The chain's name.")
@click.option("--lan", metavar="IFACE", help="Interface of the devices. Default: the only one.")
@click.option(
    "--address", metavar="A.B.C.D/N", help="What devices will use as gateway: a free LAN address."
)
@click.option(
    "--servers",
    metavar="PATH",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A folder with a sub-folder of profiles for each hop; a folder of profiles; or, "
    "given once for each hop, guard first, a folder or a profile.",
)
@click.option(
    "--hops", type=click.IntRange(1, 14), help="Split one folder of profiles into so many hops."
)
@click.option(
    "-o",
    "--output",
    default="chain.yaml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The file to write; never overwritten.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def init(
    name: str,
    lan: str | None,
    address: str | None,
    servers: tuple[Path, ...],
    hops: int | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write a chain file from an interface and a folder of profiles."""
    from chainctl.spec.chain_file import parse_chain_file
    from chainctl.spec.logins import check_logins
    from chainctl.spec.overlap import check_overlap

    if not output.parent.is_dir():
        raise _usage("C140", f"there is no folder {output.parent}")
    if os.path.lexists(output):
        raise _usage("C140", f"{output} exists already; choose another name with --output")
    interface, gateway = _lan_side(lan, address)
    text = render_chain_file(name, interface, gateway, _hops(servers, hops), output)
    spec = parse_chain_file(text, output)
    overlaps = check_overlap(spec)
    if overlaps:
        raise MendFile.of(overlaps)
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise _usage("C142", "the name of a folder or profile is not UTF-8 text") from None
    try:
        with output.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise _usage("C140", f"{output} cannot be written: {error.strerror}") from None
    notices = [*map(str, spec.notices), *map(str, check_logins(spec))]
    facts = {
        "file": str(output),
        "hops": [{"name": hop.name, "servers": len(hop.pool)} for hop in spec.hops],
        "notices": notices,
    }
    if as_json:
        print_json(facts)
        return
    for notice in notices:
        click.echo(f"Note {notice}")
    pools = ", ".join(f"{hop.name} {len(hop.pool)}" for hop in spec.hops)
    click.echo(f"Wrote {output}: {len(spec.hops)} hops, servers: {pools}.")
    click.echo(f"Next: chainctl doctor {output}")
    click.echo(f"      sudo chainctl plan {output}")
    click.echo(f"      sudo chainctl up {output}")


def render_chain_file(
    name: str, interface: str, gateway: str, hops: tuple[_Hop, ...], output: Path
) -> str:
    """The text of a chain file at `output`, which its paths are relative to."""
    lines = [
        f"chain: {_quoted(name)}",
        f"lan: {{interface: {_quoted(interface)}, address: {_quoted(gateway)}}}",
        "hops:   # guard first: the one your internet provider sees",
    ]
    for hop in hops:
        paths = [_quoted(_relative(pattern, output.parent)) for pattern in hop.servers]
        if len(paths) == 1:
            lines.append(f"  - {{name: {hop.name}, servers: {paths[0]}}}")
        else:
            lines += [f"  - name: {hop.name}", "    servers:", *(f"      - {p}" for p in paths)]
    return "\n".join(lines) + "\n"


def _lan_side(lan: str | None, address: str | None) -> tuple[str, str]:
    candidates = read_lan_candidates()
    known = dict(candidates)
    if lan is None and len(candidates) != 1:
        listed = ", ".join(f"{name} ({interface})" for name, interface in candidates)
        raise _usage(
            "C141",
            f"which interface are the devices connected to? Say --lan; there are {listed}"
            if listed
            else "no interface has a private address; say --lan",
        )
    interface = lan or candidates[0][0]
    if address is None:
        has = f"; {interface} has {known[interface]}" if interface in known else ""
        raise _usage(
            "C141",
            f"which address shall devices use as gateway? Say --address with a free one of "
            f"their network and its prefix length, as 192.168.10.254/24{has}",
        )
    return interface, address


def _hops(servers: tuple[Path, ...], count: int | None) -> tuple[_Hop, ...]:
    if len(servers) > 1 or servers[0].is_file():
        if count not in (None, len(servers)):
            raise _usage("C142", "--hops splits one folder; here each --servers is a hop already")
        return _named([_patterns(path) for path in servers])
    folder = servers[0]
    files = _profiles(folder)
    below = sorted(path for path in folder.iterdir() if path.is_dir() and _profiles(path))
    if below and not files and count in (None, len(below)):
        return _named([_patterns(path) for path in below])
    if not files:
        raise _usage(
            "C142", f"{folder} contains no *.conf or *.ovpn, nor {count or 'any'} folders with some"
        )
    if count is None and len(files) > 3:
        raise _usage("C142", f"{folder} contains {len(files)} profiles: how many hops? Say --hops")
    return _named(_split(files, count or len(files)))


_ENDINGS = (".conf", ".ovpn")


def _profiles(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in _ENDINGS and p.is_file())


def _patterns(path: Path) -> tuple[str, ...]:
    """What the hop's `servers` lists: a profile, or the folder's profiles of each kind."""
    escaped = glob.escape(str(path))
    if not path.is_dir():
        return (escaped,)
    found = {profile.suffix for profile in _profiles(path)} or {_ENDINGS[0]}
    return tuple(f"{escaped}/*{ending}" for ending in _ENDINGS if ending in found)


def _split(files: list[Path], count: int) -> list[tuple[str, ...]]:
    """Neighbours by name stay together: providers name by country, and hops should differ."""
    if count > len(files):
        raise _usage("C142", f"{len(files)} profiles are too few for {count} hops")
    ends = [round(len(files) * number / count) for number in range(count + 1)]
    return [
        tuple(glob.escape(str(path)) for path in files[begin:end])
        for begin, end in itertools.pairwise(ends)
    ]


def _named(pools: list[tuple[str, ...]]) -> tuple[_Hop, ...]:
    middle = len(pools) - 2
    names = ["middle"] if middle == 1 else [f"middle-{n}" for n in range(1, middle + 1)]
    names = ["guard", *names, "exit"] if len(pools) > 1 else ["exit"]
    return tuple(_Hop(name, servers) for name, servers in zip(names, pools, strict=True))


def _relative(pattern: str, folder: Path) -> str:
    if os.path.isabs(pattern):  # noqa: PTH117 (a pattern, not a path)
        return pattern
    relative = os.path.relpath(pattern, folder)
    return relative if relative.startswith("..") else f"./{relative}"


def _quoted(word: str) -> str:
    """Plain where YAML reads it as it stands, else as JSON, which YAML 1.2 contains."""
    plain = re.fullmatch(r"(?!(true|false|null)$)[a-z][a-z0-9-]*|[0-9.]{7,15}/[0-9]+", word)
    return word if plain else json.dumps(word, ensure_ascii=False)


def _usage(code: str, message: str) -> MendFile:
    return MendFile(code, message, hint="chainctl init --help")
