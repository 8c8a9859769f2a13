"""The chain file as a pydantic model: its keys, what each may hold, and its JSON Schema.

Each value is a word of a certain form; `Word` says which, in one place for the loader, the
schema and the complaint. Regular expressions are such that Python and ECMAScript agree.
Keys of the design that no code acts on yet are listed in `LATER`, so that they are refused
with a better word than "unknown".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from chainctl.model.chain import LEGS_PER_CHAIN, MAX_HOPS
from chainctl.model.parts import LanMode
from chainctl.spec.words import quote

SMALLEST_WIRES = 33 - LEGS_PER_CHAIN.bit_length()
"""Prefix length: room for the first chain on the machine."""

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"({_OCTET}\.){{3}}{_OCTET}"


@dataclass(frozen=True)
class Word:
    """A string that matches `pattern` as a whole, turned into a value by `parse`.

    `parse` raises ValueError with a sentence for what the pattern cannot say.
    """

    code: str
    pattern: str
    expected: str
    parse: Callable[[str], Any] = str
    later: str = ""
    """Words of the design that mean something, but not yet (a pattern)."""

    def validate(self, value: object) -> Any:
        if isinstance(value, str) and self.later and re.fullmatch(self.later, value):
            raise _refusal("C105", f"`{value}` is not built yet; expected {self.expected}")
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise _refusal(self.code, f"expected {self.expected}, found {_describe(value)}")
        try:
            return self.parse(value)
        except ValueError as error:
            raise _refusal(self.code, str(error)) from None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        if re.fullmatch(r"[a-z|]+", self.pattern):
            return {"type": "string", "enum": self.pattern.split("|")}
        return {"type": "string", "pattern": f"^{self.pattern}$"}


@dataclass(frozen=True)
class Servers:
    """One path or glob, or a list of them."""

    def validate(self, value: object) -> tuple[str, ...]:
        if value == "vault" or (isinstance(value, dict) and "vault" in value):
            raise _refusal("C105", "servers from Vault are not built yet; name files here")
        patterns = value if isinstance(value, list) else [value]
        for pattern in patterns:
            if not isinstance(pattern, str) or not pattern:
                expected = "a path or pattern such as `./profiles/*.conf`, or a list of them"
                raise _refusal("C117", f"expected {expected}, found {_describe(pattern)}")
        if not patterns:
            raise _refusal("C117", "expected at least one path or pattern, found an empty list")
        return tuple(patterns)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        path = {"type": "string", "minLength": 1}
        return {
            "anyOf": [
                path | {"not": {"const": "vault"}},
                {"type": "array", "items": path, "minItems": 1},
            ]
        }


def _refusal(code: str, message: str) -> PydanticCustomError:
    # The message goes in as a value: as a template its braces would be read as fields.
    return PydanticCustomError("complaint", "{code} {message}", {"code": code, "message": message})


def _describe(value: object) -> str:
    match value:
        case None | "":
            return "nothing"
        case bool() | int() | float():
            return f"{quote(json.dumps(value))}, which is not a word"
        case dict():
            return "keys"
        case list():
            return "a list"
    return quote(value)


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


_NAME = "[a-z][a-z0-9-]{0,19}"
_LINK = "[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,14}"
"""Less than the kernel allows: the name goes into nft rules, where `*` and quotes mean more."""


def _link(code: str) -> Word:
    return Word(code, _LINK, "the name of a network interface such as `eth1`")


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lan(_Keys):
    """The side of the devices."""

    interface: Annotated[str, _link("C111")] = Field(
        description="The interface the devices are connected to."
    )
    address: Annotated[
        IPv4Interface,
        Word(
            "C112",
            rf"{_IPV4}/([12]?[0-9]|3[0-2])",
            "an address with its prefix length such as `192.168.10.254/24`",
            _lan_address,
        ),
    ] = Field(description="What devices use as gateway: a free address of the LAN, with prefix.")
    mode: Annotated[
        LanMode | None,
        Word(
            "C113",
            "auto|macvlan|bridge",
            "`auto`, `macvlan` or `bridge`",
            lambda word: None if word == "auto" else LanMode(word),
        ),
    ] = Field(
        default=None,
        description="How the gateway joins the LAN; auto: macvlan where possible, else bridge.",
        json_schema_extra={"default": "auto"},
    )


class Hop(_Keys):
    """A place in the chain, and the servers it may use."""

    name: Annotated[
        str, Word("C115", _NAME, "a name: a small letter, then up to 19 of a-z 0-9 -")
    ] = Field(description="Unique in the chain.")
    servers: Annotated[tuple[str, ...], Servers()] = Field(
        description="Profiles of the hop's servers: a path or pattern relative to this file, "
        "or a list of them."
    )


class Wan(_Keys):
    """The side of the internet."""

    interface: Annotated[str | None, _link("C118")] = Field(
        default=None, description="Default: the interface of the default route."
    )
    mode: Annotated[str, Word("C119", "nat", "`nat`", later="macvlan|bridge")] = Field(
        default="nat", description="nat: through the host, with the host's address."
    )


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


class ChainFile(_Keys):
    """A VPN onion chain and the gateway in front of it."""

    chain: Annotated[
        str, Word("C110", _NAME, "a name: a small letter, then up to 19 of a-z 0-9 -")
    ] = Field(description="The chain's name, unique on this machine.")
    lan: Lan
    hops: Annotated[list[Hop], Field(min_length=1, max_length=MAX_HOPS)] = Field(
        description="Guard first: the one your internet provider sees. The last is the exit."
    )
    wan: Wan = Wan()
    dns: Dns = Dns()
    wires: Wires = Wires()


_LATER = {
    "": "policy clients independent health rotation record notify vault elasticsearch publish"
    " endpoints zones drain",
    "lan": "vlan docker clients ipv6",
    "wan": "address",
    "dns": "local",
    "wires": "",
    "hops": "keep rotate standby country city asn operator probe drain image protocol",
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
    """Without pydantic's titles, which repeat the keys, and defaults that are no text."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _plain(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
        and not (key == "default" and not isinstance(value, str))
    }


if __name__ == "__main__":
    import sys

    sys.stdout.write(render_schema())
