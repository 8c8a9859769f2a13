"""Reading a chain file: from a path to a ChainSpec, or to everything that is wrong with it.

The command line and the supervisor call `load_chain_file`; the text goes through
`yaml_text` (values with places), `schema` (what they may be) and `pool` (the profiles).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from chainctl.errors import Complaint, MendFile
from chainctl.model.chain import MAX_HOPS, MAX_LANS, client_bridge
from chainctl.model.clients import NamedClient, Publish
from chainctl.model.independence import Independence
from chainctl.model.parts import LanMode
from chainctl.spec.asn_table import NO_TABLE, AsnTable, load_asn_table
from chainctl.spec.duration import render_duration
from chainctl.spec.forms import Servers
from chainctl.spec.model import (
    INDEPENDENCE,
    ChainSpec,
    HealthSpec,
    HopSpec,
    LanSpec,
    Notice,
    OpenVpnServer,
    RotationSpec,
    ServerProfile,
    WanSpec,
)
from chainctl.spec.pool import Pool, load_pool
from chainctl.spec.schema import LATER, MAX_NAMED, ChainFile, Hop, Independent
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.words import nearest, quote
from chainctl.spec.yaml_text import Document, PathInFile, parse_yaml

LARGEST = 256 * 1024
"""Bytes; 500 servers listed one by one in each of 14 hops need less."""


def load_chain_file(path: Path) -> ChainSpec:
    """Read the chain file and all profiles it names; raises MendFile with all complaints."""
    try:
        text = read_small_file(path, LARGEST).decode("utf-8-sig")
    except UnreadableFile as error:
        raise MendFile.of([Complaint(str(path), 1, 1, "C101", str(error))]) from None
    except UnicodeDecodeError:
        message = "is not a text file (UTF-8 was expected)"
        raise MendFile.of([Complaint(str(path), 1, 1, "C101", message)]) from None
    return parse_chain_file(text, path)


def parse_chain_file(text: str, path: Path) -> ChainSpec:
    """As `load_chain_file`, with the text at hand; `path` is what its paths are relative to."""
    document = parse_yaml(text)
    complaints = _Complaints(str(path), document)
    for flaw in document.flaws:
        complaints.add_at(*flaw.place, flaw.code, flaw.message)
    if document.value is None and document.flaws:
        raise MendFile.of(complaints.found)
    file = _validate(document, complaints)
    pools = _load_pools(document, path.parent, complaints)
    asns = _load_asns(file, path.parent, complaints) if file else NO_TABLE
    hops = _hops(file, pools, asns, complaints) if file else ()
    if file:
        _check_own_network(file, complaints)
        _check_clients(file, complaints)
        _check_publish(file, complaints)
    if file and not complaints.found:
        _check_resolver(file, hops[-1], complaints)
    if complaints.found or file is None:
        raise MendFile.of(complaints.found)
    rotation, health = file.rotation, file.health
    return ChainSpec(
        name=file.chain,
        lans=tuple(
            LanSpec(lan.interface or client_bridge(file.chain), lan.address, lan.mode)
            for lan in file.lan
        ),
        wan=WanSpec(file.wan.interface, file.wan.mode, file.wan.address, file.wan.router),
        dns_upstream=file.dns.upstream,
        wires=file.wires.network,
        hops=hops,
        file=path,
        independent=_independence(file.independent),
        rotation=RotationSpec(
            per_hop_hour=rotation.per_hour,
            per_chain_hour=rotation.per_chain_hour,
            quiet=rotation.quiet,
            drain=rotation.drain,
            guard_budget=rotation.guards,
        ),
        health=HealthSpec(
            interval=health.interval,
            sweep=health.sweep,
            patience=health.patience,
            phi=health.phi,
            loss=health.loss,
            probe=health.probe,
        ),
        runtime=file.runtime,
        clients=tuple(
            NamedClient(
                client.name,
                client.address,
                client.mac or "",
                client.container or "",
                client.label or "",
            )
            for client in file.clients
        ),
        publish=tuple(file.publish),
        places=MappingProxyType(document.places),
    )


class _Complaints:
    def __init__(self, file: str, document: Document) -> None:
        self.file = file
        self.document = document
        self.found: list[Complaint] = []

    def add_at(self, line: int, column: int, code: str, message: str) -> None:
        self.found.append(Complaint(self.file, line, column, code, message))

    def add(self, path: PathInFile, code: str, message: str) -> None:
        """About the value at `path`."""
        self.add_at(*self.document.place(path), code, message)

    def add_key(self, path: PathInFile, code: str, message: str) -> None:
        """About the key at the end of `path`."""
        self.add_at(*self.document.key_place(path), code, message)


def _validate(document: Document, complaints: _Complaints) -> ChainFile | None:
    """The file as its model. None when that is impossible; complaints are added either way."""
    if document.value is None:
        complaints.add((), "C106", "the file is empty; `chainctl init` writes a first one")
        return None
    try:
        return ChainFile.model_validate(document.value)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            _complain(details, complaints)
        return None


def _complain(details: ErrorDetails, complaints: _Complaints) -> None:
    path = _without_made_lists(details["loc"], complaints.document)
    section = str(path[0]) if len(path) > 1 else ""
    context: dict[str, Any] = details.get("ctx", {})
    found = details["input"]
    match details["type"]:
        case "complaint":
            complaints.add((*path, *context["at"]), context["code"], context["message"])
        case "extra_forbidden":
            _complain_about_key(path, section, complaints)
        case "missing":
            inside = {1: "", 2: f" in {quote(section)}"}
            where = inside[len(path)] if len(path) in inside else f" in this {_one_of(section)}"
            complaints.add(path[:-1], "C106", f"the key {quote(path[-1])} is missing{where}")
        case "too_short":
            words = f"expected at least one {_one_of(path[0])}, found an empty list"
            complaints.add(path, "C114", words)
        case "too_long":
            most = {
                "hops": f"{MAX_HOPS} hops",
                "lan": f"{MAX_LANS} networks",
                "clients": f"{MAX_NAMED} clients",
                "publish": f"{MAX_NAMED} ports",
            }[str(path[0])]
            complaints.add(path, "C114", f"expected at most {most}, found {len(found)}")
        case "list_type" if path == ("hops",):
            complaints.add(path, "C107", "expected a list of hops, each `- {name: …, servers: …}`")
        case "list_type" if path == ("clients",):
            complaints.add(path, "C107", "expected a list of clients, each `- {name: …, mac: …}`")
        case "list_type" if path == ("publish",):
            complaints.add(path, "C107", "expected a list of ports such as `[8080:download:80]`")
        case _:
            keys = ", ".join(
                f"`{key}`" for key in _keys_of(section or str(path[0]) if path else "")
            )
            complaints.add(path, "C107", f"expected the keys {keys}")


def _without_made_lists(path: PathInFile, document: Document) -> PathInFile:
    """`lan` may be one network: then its place in the list made of it is not in the file."""
    if path[:2] == ("lan", 0) and ("lan", 0) not in document.places:
        return ("lan", *path[2:])
    return path


def _one_of(section: str | int) -> str:
    return {"hops": "hop", "lan": "network", "clients": "client"}[str(section)]


def _complain_about_key(path: PathInFile, section: str, complaints: _Complaints) -> None:
    key = str(path[-1])
    if key in LATER[section]:
        complaints.add_key(path, "C105", f"{quote(key)} is not built yet; remove it for now")
        return
    if key == "<<":
        complaints.add_key(path, "C108", "YAML 1.2 has no merge key; write the keys out")
        return
    valid = _keys_of(section)
    meant = nearest(key, valid) or f" Expected one of {', '.join(f'`{word}`' for word in valid)}."
    complaints.add_key(path, "C104", f"the key {quote(key)} is unknown.{meant}")


_MODELS = {"hops": "Hop", "clients": "Client"}


@functools.cache
def _keys_of(section: str) -> tuple[str, ...]:
    """The keys of a section; "" is the file itself."""
    schema = ChainFile.model_json_schema()
    if section:
        schema = schema["$defs"][_MODELS.get(section, section.capitalize())]
    return tuple(schema["properties"])


def _load_pools(document: Document, folder: Path, complaints: _Complaints) -> list[Pool]:
    """The pool of each hop, also in a file with other faults: all complaints at once."""
    hops = document.value.get("hops") if isinstance(document.value, dict) else None
    pools = []
    names: dict[str, int] = {}
    for index, hop in enumerate(hops[:MAX_HOPS] if isinstance(hops, list) else ()):
        at: PathInFile = ("hops", index)
        name = hop.get("name") if isinstance(hop, dict) else None
        if isinstance(name, str):
            if name in names:
                words = f"the hop in line {names[name]} is called {quote(name)} already"
                complaints.add((*at, "name"), "C116", words)
            names.setdefault(name, document.place(at).line)
        servers = hop.get("servers") if isinstance(hop, dict) else None
        try:
            sources = Servers().validate(servers)
        except PydanticCustomError:
            continue  # The model has said it.
        pool = load_pool(sources, folder)
        pools.append(pool)
        for place, message in pool.flaws:
            inside = place if isinstance(servers, list) else place[1:]
            complaints.add((*at, "servers", *inside), "C117", message)
        complaints.found.extend(pool.complaints)
        _check_names(pool, (*at, "servers"), complaints)
    return pools


def _check_names(pool: Pool, at: PathInFile, complaints: _Complaints) -> None:
    names: dict[str, Path] = {}
    for profile in pool.profiles:
        if profile.name in names:
            both = f"in {quote(names[profile.name])} and in {quote(profile.file)}"
            words = f"two servers are called {quote(profile.name)}, {both}; rename one of them"
            complaints.add(at, "C117", words)
        names.setdefault(profile.name, profile.file)


def _load_asns(file: ChainFile, folder: Path, complaints: _Complaints) -> AsnTable:
    written = file.independent.asn_table
    if written is None:
        return NO_TABLE
    try:
        return load_asn_table(folder / written)
    except MendFile as error:
        complaints.found.extend(error.complaints)
        return NO_TABLE


def _hops(
    file: ChainFile, pools: list[Pool], asns: AsnTable, complaints: _Complaints
) -> tuple[HopSpec, ...]:
    per_hour = file.rotation.per_hour
    return tuple(
        replace(_hop(hop, pool, ("hops", index), per_hour, complaints), asns=asns)
        for index, (hop, pool) in enumerate(zip(file.hops, pools, strict=True))
    )


def _hop(hop: Hop, pool: Pool, at: PathInFile, per_hour: int, complaints: _Complaints) -> HopSpec:
    profiles, notices = tuple(pool.profiles), list(pool.notices)
    if hop.country is not None and pool.whole:
        profiles = tuple(p for p in pool.profiles if p.labels.country in hop.country)
        unknown = [p.name for p in pool.profiles if p.labels.country is None]
        if not profiles:
            words = f"no server of this hop is known to be there{_and_unknown(unknown)}"
            complaints.add((*at, "country"), "C123", words)
        elif unknown:
            words = f"servers are left out{_and_unknown(unknown)}"
            place = complaints.document.place((*at, "country"))
            notices.append(Notice(complaints.file, *place, "N107", words))
    if hop.prefer is not None and pool.whole and profiles:
        _check_preferred(hop.prefer, profiles, pool, (*at, "prefer"), complaints)
    if pool.whole and len(profiles) == 1:
        for key in ("rotate", "standby"):
            if getattr(hop, key):
                words = f"`{key}` needs a second server in this hop"
                complaints.add((*at, key), "C128", words)
    if hop.rotate is not None and hop.rotate[0] * per_hour < 3600:
        often = f"a change every {render_duration(hop.rotate[0])} is more often than"
        words = f"{often} `rotation: {{per_hour: {per_hour}}}` allows"
        complaints.add((*at, "rotate"), "C128", words)
    return HopSpec(
        name=hop.name,
        pool=profiles,
        line=complaints.document.place(at).line,
        rotate=hop.rotate,
        keep=hop.keep,
        prefer=hop.prefer,
        standby=hop.standby,
        sessions=hop.sessions,
        notices=tuple(notices),
        listed=pool.listed,
    )


def _and_unknown(names: list[str]) -> str:
    if not names:
        return ""
    others = f" and of {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f": the country of {quote(names[0])}{others} is not known; "
        "a line `# country = ch` in a profile says it"
    )


def _check_preferred(
    name: str,
    profiles: tuple[ServerProfile, ...],
    pool: Pool,
    at: PathInFile,
    complaints: _Complaints,
) -> None:
    names = [profile.name for profile in profiles]
    if name in names:
        return
    if name in {profile.name for profile in pool.profiles}:
        words = f"{quote(name)} is not in the countries that `country` names"
    else:
        words = f"the hop has no server {quote(name)}.{nearest(name, names)}".rstrip(".")
    complaints.add(at, "C126", words)


def _independence(written: Independent) -> Independence:
    """What is not required is preferred, unless the file says what is."""
    preferred = INDEPENDENCE.prefer if written.prefer is None else written.prefer
    return Independence(written.require, preferred - written.require)


def _check_own_network(file: ChainFile, complaints: _Complaints) -> None:
    own = [number for number, lan in enumerate(file.lan) if lan.mode and lan.mode.own]
    for number in own[1:]:
        words = "a chain has one network of the modes local and docker"
        complaints.add(("lan", number, "mode"), "C146", words)


def _check_clients(file: ChainFile, complaints: _Complaints) -> None:
    networks = [lan.address.network for lan in file.lan]
    seen: dict[tuple[str, object], int] = {}
    for number, client in enumerate(file.clients):
        for key in ("name", "address", "mac", "container", "label"):
            value = getattr(client, key)
            if value is None:
                continue
            first = seen.setdefault((key, value), number)
            if first != number:
                line = complaints.document.place(("clients", first)).line
                words = f"the client in line {line} has {quote(value)} already"
                complaints.add(("clients", number, key), "C148", words)
        if client.address and not any(client.address in network for network in networks):
            words = f"{client.address} lies in none of the networks in `lan`"
            complaints.add(("clients", number, "address"), "C148", words)


def _check_publish(file: ChainFile, complaints: _Complaints) -> None:
    if not file.publish:
        return
    if not any(lan.mode is LanMode.DOCKER for lan in file.lan):
        words = "only containers have published ports; add `{mode: docker, …}` to `lan`"
        complaints.add(("publish",), "C149", words)
    gateways = [lan.address.ip for lan in file.lan if not (lan.mode and lan.mode.own)]
    if not gateways:
        words = "ports are published to devices, and `lan` has no network of any"
        complaints.add(("publish",), "C149", words)
        return
    taken: dict[tuple[int, int, IPv4Address], Publish] = {}
    for number, wish in enumerate(file.publish):
        at: PathInFile = ("publish", number)
        if wish.at is not None and wish.at not in gateways:
            theirs = ", ".join(map(str, gateways))
            words = f"{wish.at} is not the gateway's address in a network of devices ({theirs})"
            complaints.add(at, "C149", words)
        if wish.port == 53:
            complaints.add(at, "C149", "port 53 of the gateway answers questions for names")
        for gateway in [wish.at] if wish.at else gateways:
            other = taken.setdefault((wish.protocol, wish.port, gateway), wish)
            if other is not wish:
                words = f"port {wish.port} of {gateway} is published already: {quote(str(other))}"
                complaints.add(at, "C149", words)


def _check_resolver(file: ChainFile, exit_hop: HopSpec, complaints: _Complaints) -> None:
    # An OpenVPN server names its resolver when it is asked.
    pool = (server for server in exit_hop.pool if not isinstance(server, OpenVpnServer))
    silent = [server.name for server in pool if not server.dns]
    if file.dns.upstream is None and silent:
        others = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
        complaints.add(
            ("hops", len(file.hops) - 1, "servers"),
            "C122",
            f"the exit's server {quote(silent[0])}{others} names no resolver (`DNS =`), so nobody "
            "would answer the devices; name one: `dns: {upstream: 9.9.9.9}`",
        )
