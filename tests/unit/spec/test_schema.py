"""The JSON Schema says what the loader says, about everything that a schema can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import ValidationError

from chainctl.spec.schema import LATER, ChainFile, render_schema
from chainctl.spec.yaml_text import parse_yaml

HERE = Path(__file__).parent
SHIPPED = Path(__file__).parents[3] / "chainctl" / "spec" / "chain.schema.json"
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
BROKEN = sorted((HERE / "broken").glob("*.yaml"))
VALIDATOR = Draft202012Validator(json.loads(render_schema()))

BEYOND_A_SCHEMA = {
    "accounts-and-files",
    "address-broadcast",
    "address-loopback",
    "address-network",
    "broken-profiles",
    "clients-that-clash",
    "duplicate-keys",
    "exit-without-resolver",
    "no-such-profile",
    "publish-that-clashes",
    "publish-to-nobody",
    "same-names",
    "same-server-name",
    "servers-that-are-not-there",
    "two-documents",
    "wires-host-bits",
    "wires-small",
    "yaml-1.1",
}
"""Broken files whose fault lies in what is written around the values, or between them."""


def _loader_takes(value: Any) -> bool:
    try:
        ChainFile.model_validate(value)
    except ValidationError:
        return False
    return True


def test_the_shipped_file_is_up_to_date() -> None:
    assert SHIPPED.read_text() == render_schema(), (
        "write it anew: python -m chainctl.spec.schema > chainctl/spec/chain.schema.json"
    )


def test_it_is_a_schema_with_a_word_about_every_key() -> None:
    schema = json.loads(render_schema())
    Draft202012Validator.check_schema(schema)
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False
        for name, key in section["properties"].items():
            assert "description" in key or "$ref" in key, name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    assert list(VALIDATOR.iter_errors(parse_yaml(path.read_text()).value)) == []


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_broken_files_are_not(path: Path) -> None:
    if path.stem == "binary":
        return
    value = parse_yaml(path.read_text()).value
    assert VALIDATOR.is_valid(value) == (path.stem in BEYOND_A_SCHEMA)


def test_later_keys_are_not_keys_yet() -> None:
    schema = json.loads(render_schema())
    sections = {"": schema, "hops": schema["$defs"]["Hop"], "clients": schema["$defs"]["Client"]}
    for section, keys in LATER.items():
        known = sections.get(section) or schema["$defs"][section.capitalize()]
        assert not keys & set(known["properties"])


_WORDS = (
    "home Home  eth1 eth1.7 .. a/b eth* auto bridge nat no 10.0.0.1 10.0.0.256 10.0.0.1/33 vault"
    " 9.9.9.9 tls://9.9.9.9 macvlan ./x/*.conf " + "a" * 20 + " " + "a" * 21 + " ch uk xx"
    " 5s 6h-24h 6h- 08:00-18:00 8-18 20% server country asn"
)
_ACCOUNTS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "account": st.sampled_from(["a.conf", "", 1]),
        "list": st.just("l.csv"),
        "vault": st.just("x"),
        "home": st.just("x"),
    },
)
_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(_WORDS.split(" ")),
    st.none(),
    st.booleans(),
    st.integers(-1, 9),
    st.sampled_from([0.5, 1.0, 8.5, 1e9]),
    st.just({"vault": "x"}),
    _ACCOUNTS,
    st.lists(st.one_of(st.sampled_from(["a.conf", "", 3, None, "vault"]), _ACCOUNTS), max_size=2),
    st.lists(st.sampled_from(["ch", "se", "no", "uk", "zz", 1]), max_size=3),
    st.lists(st.sampled_from(["server", "network", "country", "home", None]), max_size=3),
)


def _section(*keys: str, good: Any = "home", **better: Any) -> st.SearchStrategy[Any]:
    """Often a mapping of `keys`, whose values are often `good`, sometimes anything; of the
    keys in `better` they are often those.
    """
    often = dict.fromkeys((*keys, "policy"), good) | better
    known = st.fixed_dictionaries(
        {}, optional={key: st.one_of(st.just(value), _VALUES) for key, value in often.items()}
    )
    return st.one_of(known, known, known, _VALUES)


_HOP = {
    "country": ["ch", "no"],
    "keep": "30d",
    "rotate": "6h-24h",
    "prefer": "se-1",
    "standby": True,
    "sessions": 1,
}
_ROTATION = {"per_hour": 6, "per_chain_hour": 12, "drain": "10m", "guards": 4}
_HEALTH = {"interval": "1s", "patience": "12s", "phi": 8, "loss": "20%", "probe": "9.9.9.9"}


_MAC = "02:00:5E:10:00:01"
_PORTS = (
    *("8080:web:80", "8080:web:80/udp", "192.168.10.254:1:a_b.c-d:65535/tcp"),
    *("0:web:80", "8080:web:65536", "8080:80", "1.2.3:8080:web:80", "80:-web:80", 8080, None),
)


_GOOD = {
    "chain": "home",
    "lan": {"interface": "eth1", "address": "192.168.10.254/24"},
    "hops": [{"name": "guard", "servers": "x.conf"}],
}


@settings(max_examples=500)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "chain": _VALUES,
            "lan": _section("interface", "address", "mode", good="192.168.10.254/24"),
            "hops": st.one_of(
                st.lists(_section("name", "servers"), max_size=15),
                st.lists(_section("name", "servers", **_HOP), min_size=1, max_size=2),
                _VALUES,
            ),
            "wan": _section("interface", "mode"),
            "dns": _section("upstream", good="9.9.9.9"),
            "wires": _section("network", good="10.99.0.0/27"),
            "independent": _section(require="server", prefer=["country"]),
            "rotation": _section(**_ROTATION, quiet="08:00-18:00"),
            "health": _section(**_HEALTH),
            "clients": st.one_of(
                st.lists(_section("name", address="192.168.10.5"), max_size=2),
                st.lists(_section("name", "container", mac=_MAC, label="a.b/c=d"), max_size=2),
                _VALUES,
            ),
            "publish": st.one_of(st.lists(st.sampled_from(_PORTS), max_size=2), _VALUES),
            "colour": _VALUES,
        },
    )
)
def test_schema_and_loader_agree(changes: dict[str, Any]) -> None:
    for value in (changes, _GOOD | changes, *({**_GOOD, key: changes[key]} for key in changes)):
        assert VALIDATOR.is_valid(value) == _loader_takes(value), value
