"""The chain file as a pydantic model: its keys, what each may hold, and its JSON Schema.

`forms` says what forms values have. Defaults of how a chain looks after itself stand in
`model`. Keys of the design that no code acts on yet are listed in `LATER`, so that they are
refused with a better word than "unknown".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from chainctl.model.chain import LEGS_PER_CHAIN, MAX_HOPS, MAX_LANS
from chainctl.model.clients import CLIENT_NAME, Publish
from chainctl.model.independence import Trait
from chainctl.model.parts import TCP, UDP, LanMode, RuntimeKind
from chainctl.spec.countries import COUNTRIES
from chainctl.spec.duration import (
    DURATION,
    SPAN,
    parse_duration,
    parse_span,
    render_duration,
)
from chainctl.spec.forms import (
    Choice,
    Flag,
    Number,
    Servers,
    Source,
    Word,
    refusal,
)
from chainctl.spec.model import INDEPENDENCE, HealthSpec, RotationSpec
from chainctl.spec.words import quote

MAX_NAMED = 1000
SMALLEST_WIRES = 33 - LEGS_PER_CHAIN.bit_length()
"""Prefix length: room for the first chain on the machine."""

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"({_OCTET}\.){{3}}{_OCTET}"
_WITH_PREFIX = rf"{_IPV4}/([12]?[0-9]|3[0-2])"


def _lan_address(word: str) -> IPv4Interface:
    interface = IPv4Interface(word)
    network = interface.network
    refuse_special(interface.ip)
    if network.prefixlen > 30:
        raise ValueError(f"{quote(word)} leaves no address for devices; a LAN is /30 or larger")
    if interface.ip in (network.network_address, network.broadcast_address):
        kind = "network" if interface.ip == network.network_address else "broadcast"
        raise ValueError(f"{interface.ip} is the {kind} address of {network}; take one between")
    return interface


def _wires(word: str) -> IPv4Network:
    interface = IPv4Interface(word)
    refuse_special(interface.network.network_address)
    if interface.network.prefixlen > SMALLEST_WIRES:
        raise ValueError(f"{quote(word)} is too small; a chain needs /{SMALLEST_WIRES} or larger")
    if interface.ip != interface.network.network_address:
        raise ValueError(f"{quote(word)} is an address; the network is `{interface.network}`")
    return interface.network


def _server_address(word: str) -> IPv4Address:
    address = IPv4Address(word)
    refuse_special(address)
    return address


def refuse_special(address: IPv4Address) -> None:
    """ValueError for an address that can belong to no device and no server."""
    if address.is_loopback:
        raise ValueError(f"{address} is a loopback address, it means the sender itself")
    if address.is_multicast or address in IPv4Network("240.0.0.0/4"):
        raise ValueError(f"{address} belongs to no single machine")
    if address in IPv4Network("0.0.0.0/8"):
        raise ValueError(f"{address} is not an address one can send to")


_T = TypeVar("_T")


def _bounded(
    parse: Callable[[str], _T], ends: Callable[[_T], tuple[float, float]], low: str, high: str
) -> Callable[[str], _T]:
    """`parse`, which refuses what does not lie between `low` and `high`, both included."""

    def parse_bounded(word: str) -> _T:
        value = parse(word)
        least, most = ends(value)
        if least < parse_duration(low) or most > parse_duration(high):
            raise ValueError(f"expected a time from {low} to {high}, found {quote(word)}")
        return value

    return parse_bounded


def _duration(code: str, example: str, low: str, high: str) -> Word:
    expected = f"a time with its unit such as `{example}`"
    return Word(
        code, DURATION, expected, _bounded(parse_duration, lambda time: (time, time), low, high)
    )


def _span(code: str, example: str, low: str, high: str) -> Word:
    expected = f"a time or two of them such as `{example}`"
    return Word(code, SPAN, expected, _bounded(parse_span, lambda span: span, low, high))


def _quiet(word: str) -> tuple[time, time]:
    begin, end = (time.fromisoformat(part) for part in word.split("-"))
    if begin == end:
        raise ValueError(f"{quote(word)} begins when it ends")
    return begin, end


def _percent(word: str) -> float:
    percent = int(word.removesuffix("%"))
    if not 1 <= percent <= 99:
        raise ValueError(f"expected from 1% to 99%, found {quote(word)}")
    return percent / 100


_NAME = "[a-z][a-z0-9-]{0,19}"
_LINK = "[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,14}"
"""Less than the kernel allows: the name goes into nft rules, where `*` and quotes mean more."""


_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"


def _publish(word: str) -> Publish:
    ends, _, protocol = word.partition("/")
    *at, port, client, client_port = ends.split(":")
    return Publish(
        port=int(port),
        client=client,
        client_port=int(client_port),
        protocol=UDP if protocol == "udp" else TCP,
        at=IPv4Address(at[0]) if at else None,
    )


def _link(code: str) -> Word:
    return Word(code, _LINK, "the name of a network interface such as `eth1`")


def _one_of(words: Iterable[str]) -> str:
    *others, last = (f"`{word}`" for word in words)
    return f"{', '.join(others)} or {last}"


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_OWN: dict[str, Any] = {
    "properties": {"mode": {"enum": [mode.value for mode in LanMode if mode.own]}},
    "required": ["mode"],
}
"""The JSON Schema of a network that has no interface."""


class Lan(_Keys):
    """The side of the devices."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": _OWN,
            "then": {"not": {"required": ["interface"]}},
            "else": {"required": ["interface"]},
        }
    )

    interface: Annotated[str | None, _link("C111")] = Field(
        default=None,
        description="The interface the devices are connected to. None with the modes local and "
        "docker.",
    )
    address: Annotated[
        IPv4Interface,
        Word(
            "C112",
            _WITH_PREFIX,
            "an address with its prefix length such as `192.168.10.254/24`",
            _lan_address,
        ),
    ] = Field(description="What devices use as gateway: a free address of the LAN, with prefix.")
    mode: Annotated[
        LanMode | None,
        Word(
            "C113",
            "auto|macvlan|bridge|local|docker",
            "`auto`, `macvlan`, `bridge`, `local` or `docker`",
            lambda word: None if word == "auto" else LanMode(word),
        ),
    ] = Field(
        default=None,
        description="How the gateway joins the LAN; auto: macvlan where possible, else bridge. "
        "local: a network for programs of this machine; docker: for containers too.",
        json_schema_extra={"default": "auto"},
    )

    @model_validator(mode="after")
    def _interface_or_none(self) -> Self:
        own = self.mode is not None and self.mode.own
        if own and self.interface is not None:
            raise refusal("C146", "a network of this mode has no interface; remove `interface`")
        if not own and self.interface is None:
            raise refusal("C106", "the key `interface` is missing in `lan`")
        return self


class Hop(_Keys):
    """A place in the chain, and the servers it may use."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {"not": {"required": ["keep", "rotate"]}},
                {"not": {"required": ["keep", "prefer"]}},
                {"not": {"required": ["rotate", "prefer"]}},
                {
                    "not": {
                        "properties": {"standby": {"const": True}, "sessions": {"const": 1}},
                        "required": ["standby", "sessions"],
                    }
                },
            ]
        }
    )

    name: Annotated[
        str, Word("C115", _NAME, "a name: a small letter, then up to 19 of a-z 0-9 -")
    ] = Field(description="Unique in the chain.")
    servers: Annotated[tuple[Source, ...], Servers()] = Field(
        description="The hop's servers: a path or pattern of profiles, an account with the list "
        "of its servers, or a list of these. Paths are relative to this file."
    )
    country: Annotated[
        frozenset[str] | None,
        Choice("C123", "a country by its two letters such as `ch`", COUNTRIES),
    ] = Field(default=None, description="Use only servers known to stand in these countries.")
    keep: Annotated[float | None, _duration("C124", "30d", "1s", "3650d")] = Field(
        default=None, description="How long the hop stays with a server that works."
    )
    rotate: Annotated[tuple[float, float] | None, _span("C124", "6h-24h", "1s", "365d")] = Field(
        default=None,
        description="Change the server after a time between these two, drawn anew each time.",
    )
    prefer: Annotated[
        str | None, Word("C126", "[^\\r\\n]{1,255}", "the name of a server of this hop")
    ] = Field(default=None, description="The server to go back to when it works again.")
    standby: Annotated[bool, Flag("C125")] = Field(
        default=False, description="Keep a tunnel to a second server ready."
    )
    sessions: Annotated[int, Number("C127", 1, 100)] = Field(
        default=0,
        description="How many tunnels the account allows at a time. Default: any number.",
        json_schema_extra={"default": None},
    )

    @field_validator("rotate", "prefer")
    @classmethod
    def _one_way_to_stay(cls, value: _T, info: ValidationInfo) -> _T:
        for key in ("keep", "rotate"):
            if info.data.get(key) is not None:
                words = f"`{info.field_name}` and `{key}` exclude each other; remove one of them"
                raise refusal("C128", words)
        return value

    @field_validator("sessions")
    @classmethod
    def _standby_is_a_session(cls, value: int, info: ValidationInfo) -> int:
        if value == 1 and info.data.get("standby"):
            raise refusal("C128", "a standby is a second session; remove `standby`")
        return value


class Wan(_Keys):
    """The side of the internet."""

    interface: Annotated[str | None, _link("C118")] = Field(
        default=None, description="Default: the interface of the default route."
    )
    mode: Annotated[
        LanMode | None,
        Word(
            "C119",
            "nat|macvlan|bridge",
            "`nat`, `macvlan` or `bridge`",
            lambda word: None if word == "nat" else LanMode(word),
        ),
    ] = Field(
        default=None,
        description="nat: through the host, with the host's address; macvlan, bridge: with a link "
        "and an address of the chain's own.",
        json_schema_extra={"default": "nat"},
    )
    address: Annotated[
        IPv4Interface | None,
        Word(
            "C147",
            _WITH_PREFIX,
            "an address with its prefix length such as `203.0.113.5/24`",
            _lan_address,
        ),
    ] = Field(
        default=None,
        description="The chain's own address in the network outside, with its prefix; only with "
        "`mode: macvlan` or `bridge`.",
    )
    router: Annotated[
        IPv4Address | None,
        Word("C147", _IPV4, "an IPv4 address such as `203.0.113.1`", _server_address),
    ] = Field(default=None, description="Who leads on from there. Default: the host's own router.")

    @model_validator(mode="after")
    def _address_goes_with_the_mode(self) -> Self:
        own, router = self.address, self.router
        if self.mode is not None and own is None:
            words = f"`mode: {self.mode.value}` needs `address`, one of the chain's own"
            raise refusal("C147", words, ("mode",))
        if self.mode is None and (own or router):
            key = "address" if own else "router"
            words = f"`{key}` goes with `mode: macvlan` or `mode: bridge`"
            raise refusal("C147", words, (key,))
        if own and router and (router not in own.network or router == own.ip):
            raise refusal("C147", f"{router} is no other address in {own.network}", ("router",))
        return self


class Dns(_Keys):
    """Who answers the devices' questions; always asked through the chain."""

    upstream: Annotated[
        IPv4Address | None,
        Word(
            "C120",
            _IPV4,
            "an IPv4 address such as `9.9.9.9`",
            _server_address,
            later="(tls|https|quic)://.*",
        ),
    ] = Field(default=None, description="Default: the resolver that the exit's profile names.")


class Wires(_Keys):
    """Addresses of the connections inside this machine."""

    network: Annotated[
        IPv4Network,
        Word(
            "C121",
            rf"{_IPV4}/([12]?[0-9]|3[0-2])",
            "a network such as `198.19.0.0/16`",
            _wires,
        ),
    ] = Field(
        default=IPv4Network("198.19.0.0/16"),
        description="A network that is used nowhere else; /27 or larger.",
        json_schema_extra={"default": "198.19.0.0/16"},
    )


_TRAITS = {trait.value: trait for trait in Trait}
_PREFERABLE = {word: trait for word, trait in _TRAITS.items() if trait is not Trait.SERVER}


def _naming(trait: Trait) -> dict[str, Any]:
    """The JSON Schema of a word or list that names `trait`."""
    word = {"const": trait.value}
    return {"anyOf": [word, {"type": "array", "contains": word}]}


class Independent(_Keys):
    """What two servers of the chain may not have in common."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "anyOf": [
                    {"properties": dict.fromkeys(("require", "prefer"), _naming(trait))}
                    for trait in _PREFERABLE.values()
                ],
                "required": ["require", "prefer"],
            }
        }
    )

    require: Annotated[
        frozenset[Trait], Choice("C129", _one_of(_TRAITS), _TRAITS, always=Trait.SERVER.value)
    ] = Field(
        default=INDEPENDENCE.require,
        description="Never; nothing leaves while no server meets it.",
        json_schema_extra={"default": [trait.value for trait in INDEPENDENCE.require]},
    )
    prefer: Annotated[
        frozenset[Trait] | None,
        Choice("C129", _one_of(_PREFERABLE), _PREFERABLE, may_be_empty=True),
    ] = Field(
        default=None,
        description="Only when nothing better is left. Default: what is not required.",
    )

    asn_table: Annotated[
        str | None, Word("C129", ".{1,4096}", "the path of a table, `./asn.csv`")
    ] = Field(
        default=None,
        description="CSV of prefixes and the autonomous systems that announce them. Default: "
        "systems are known by labels only.",
    )

    @field_validator("prefer")
    @classmethod
    def _not_twice(cls, value: frozenset[Trait], info: ValidationInfo) -> frozenset[Trait]:
        for trait in value & info.data.get("require", frozenset()):
            raise refusal("C129", f"`{trait.value}` is required already")
        return value


_ROTATION, _HEALTH = RotationSpec(), HealthSpec()
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"


class Rotation(_Keys):
    """When and how often servers are replaced."""

    per_hour: Annotated[int, Number("C136", 1, 3600)] = Field(
        default=_ROTATION.per_hop_hour,
        description="At most so many changes of a hop's server in an hour.",
    )
    per_chain_hour: Annotated[int, Number("C136", 1, 3600)] = Field(
        default=_ROTATION.per_chain_hour,
        description="At most so many changes in the whole chain in an hour.",
    )
    quiet: Annotated[
        tuple[time, time] | None,
        Word("C136", f"{_TIME}-{_TIME}", "two times of day such as `08:00-18:00`", _quiet),
    ] = Field(
        default=None,
        description="No planned change at these hours (local time); what fails is replaced still.",
    )
    drain: Annotated[float, _duration("C136", "10m", "0s", "24h")] = Field(
        default=_ROTATION.drain,
        description="How long connections go on over the exit they began with, after a planned "
        "change.",
        json_schema_extra={"default": render_duration(_ROTATION.drain)},
    )
    guards: Annotated[int, Number("C136", 1, 100)] = Field(
        default=_ROTATION.guard_budget,
        description="At most so many different guards in 60 days.",
    )


class Health(_Keys):
    """How a failing hop is recognised. The defaults need no touching."""

    interval: Annotated[float, _duration("C137", "250ms", "50ms", "60s")] = Field(
        default=_HEALTH.interval,
        description="Between two questions to a hop that answers.",
        json_schema_extra={"default": render_duration(_HEALTH.interval)},
    )
    sweep: Annotated[float, _duration("C137", "1m", "1s", "24h")] = Field(
        default=_HEALTH.sweep,
        description="Between two sweeps: each hop is asked, however well the chain is.",
        json_schema_extra={"default": render_duration(_HEALTH.sweep)},
    )
    patience: Annotated[float, _duration("C137", "12s", "1s", "10m")] = Field(
        default=_HEALTH.patience,
        description="How long a new tunnel may take for its first answer.",
        json_schema_extra={"default": render_duration(_HEALTH.patience)},
    )
    phi: Annotated[float, Number("C137", 1, 100, whole=False)] = Field(
        default=_HEALTH.phi,
        description="Suspicion from which a silent hop is dead: 8 is one mistake in 10^8.",
    )
    loss: Annotated[float, Word("C137", "[0-9]{1,2}%", "a share such as `20%`", _percent)] = Field(
        default=_HEALTH.loss,
        description="Loss from which a hop is to be replaced.",
        json_schema_extra={"default": f"{_HEALTH.loss:.0%}"},
    )
    probe: Annotated[
        IPv4Address | None,
        Word("C137", _IPV4, "an IPv4 address such as `9.9.9.9`", _server_address),
    ] = Field(
        default=None,
        description="An address that answers pings, asked through each hop first. Default: no "
        "third party is asked.",
    )


_KNOWN_BY = ("address", "mac", "container", "label")


class Client(_Keys):
    """A name for a device or a container that uses the chain."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [key]} for key in _KNOWN_BY]}
    )

    name: Annotated[
        str, Word("C148", CLIENT_NAME, "a name: a letter or digit, then more of A-Z a-z 0-9 _ . -")
    ] = Field(description="What you call it; unique in the chain.")
    address: Annotated[
        IPv4Address | None,
        Word("C148", _IPV4, "an IPv4 address such as `192.168.10.20`", _server_address),
    ] = Field(default=None, description="It is who has this address in one of the networks.")
    mac: Annotated[
        str | None,
        Word(
            "C148",
            "[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}",
            "a MAC address such as `02:00:5e:10:00:01`",
            str.lower,
        ),
    ] = Field(default=None, description="It is who has this MAC address.")
    container: Annotated[
        str | None, Word("C148", CLIENT_NAME, "the name of a container such as `download`")
    ] = Field(default=None, description="It is the container of this name.")
    label: Annotated[
        str | None,
        Word(
            "C148",
            "[A-Za-z0-9][A-Za-z0-9._/-]{0,127}(=[^\\r\\n]{0,255})?",
            "a label of a container such as `com.docker.compose.service=download`",
        ),
    ] = Field(default=None, description="It is a container that has this label.")

    @model_validator(mode="after")
    def _known_by_one_thing(self) -> Self:
        given = [key for key in _KNOWN_BY if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(f"`{key}`" for key in given) or "none"
            raise refusal("C148", f"expected one of {_one_of(_KNOWN_BY)}, found {found}")
        return self


def _as_list(value: object) -> object:
    """One thing may stand without the list around it."""
    return [value] if isinstance(value, dict) else value


def _or_alone(schema: dict[str, Any]) -> None:
    several = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems")}
    at_most_one_own = {"contains": _OWN, "minContains": 0, "maxContains": 1}
    schema["anyOf"] = [several["items"], several | at_most_one_own]


class ChainFile(_Keys):
    """A VPN onion chain and the gateway in front of it."""

    chain: Annotated[
        str, Word("C110", _NAME, "a name: a small letter, then up to 19 of a-z 0-9 -")
    ] = Field(description="The chain's name, unique on this machine.")
    lan: Annotated[list[Lan], BeforeValidator(_as_list)] = Field(
        min_length=1,
        max_length=MAX_LANS,
        description="The networks of your devices: one, or a list.",
        json_schema_extra=_or_alone,
    )
    hops: Annotated[list[Hop], Field(min_length=1, max_length=MAX_HOPS)] = Field(
        description="Guard first: the one your internet provider sees. The last is the exit."
    )
    wan: Wan = Wan()
    dns: Dns = Dns()
    wires: Wires = Wires()
    independent: Independent = Independent()
    rotation: Rotation = Rotation()
    health: Health = Health()
    runtime: Annotated[
        RuntimeKind | None,
        Word(
            "C145",
            "embedded|docker|auto",
            "`embedded`, `docker` or `auto`",
            lambda word: None if word == "auto" else RuntimeKind(word),
        ),
    ] = Field(
        default=RuntimeKind.EMBEDDED,
        description="What runs the VPN clients; auto: Docker if it answers when the chain comes "
        "up, else chainctl itself.",
        json_schema_extra={"default": "embedded"},
    )
    clients: Annotated[list[Client], Field(max_length=MAX_NAMED)] = Field(
        default=[], description="Names for devices and containers, by which they are shown."
    )
    publish: list[
        Annotated[
            Publish,
            Word(
                "C149",
                rf"({_IPV4}:)?{_PORT}:{CLIENT_NAME}:{_PORT}(/(tcp|udp))?",
                "PORT:CONTAINER:PORT such as `8080:download:80` or `5353:names:53/udp`",
                _publish,
            ),
        ]
    ] = Field(
        default=[],
        max_length=MAX_NAMED,
        description="Ports of the gateway that lead to containers: PORT:CONTAINER:PORT. Only "
        "devices of the LAN reach them.",
    )


_LATER = {
    "": "policy record notify vault elasticsearch endpoints zones",
    "lan": "vlan clients ipv6",
    "wan": "",
    "dns": "local",
    "wires": "",
    "hops": "city asn operator probe drain image protocol",
    "independent": "",
    "rotation": "",
    "health": "",
    "clients": "",
}
LATER = {section: frozenset(keys.split()) for section, keys in _LATER.items()}
"""Keys of the design without code behind them yet, by the section they stand in."""


def render_schema() -> str:
    """The JSON Schema as shipped (`chain.schema.json`), for editors and other programs."""
    schema = _plain(ChainFile.model_json_schema())
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "chainctl chain file",
        **schema,
    }
    return json.dumps(schema, indent=2) + "\n"


def _plain(schema: Any) -> Any:
    """Without pydantic's titles, which repeat the keys, and defaults that no file can hold."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _plain(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
        and not (key == "default" and not isinstance(value, str | int | float | list))
    }


if __name__ == "__main__":
    import sys

    sys.stdout.write(render_schema())
