from __future__ import annotations

import json
from datetime import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chainctl.errors import MendFile
from chainctl.model.independence import Independence, Trait
from chainctl.model.parts import LanMode
from chainctl.spec.chain_file import LARGEST, load_chain_file, parse_chain_file
from chainctl.spec.model import INDEPENDENCE, ChainSpec, HealthSpec, HopSpec, RotationSpec
from chainctl.spec.overlap import check_overlap
from chainctl.spec.pool import LARGEST_POOL
from chainctl.spec.schema import render_schema
from chainctl.spec.yaml_text import parse_yaml
from tests.unit.spec.builders import chain_text, outcome, profile_text

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "se-1.conf").write_text(profile_text())
    (tmp_path / "se-2.conf").write_text(profile_text(endpoint="se-2.example:51820"))
    return tmp_path


def _codes(text: str, folder: Path) -> list[str]:
    with pytest.raises(MendFile) as caught:
        parse_chain_file(text, folder / "chain.yaml")
    return [complaint.code for complaint in caught.value.complaints]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    spec = load_chain_file(path)
    assert spec.name == "home"
    assert spec.lans[0].address == IPv4Interface("192.168.10.254/24")
    assert all(hop.pool for hop in spec.hops)


def test_the_example_with_every_key_lacks_none() -> None:
    def missing(written: Any, schema: Any) -> set[str]:
        schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if "items" in schema and "properties" not in schema:
            return set.intersection(*(missing(item, schema["items"]) for item in written))
        if "properties" not in schema:
            return set()
        keys = schema["properties"]
        inside = [missing(written[key], keys[key]) for key in keys if key in written]
        return (set(keys) - set(written)).union(*inside)

    schema = json.loads(render_schema())
    definitions = schema["$defs"]
    (path,) = (path for path in EXAMPLES if path.stem == "every-key")
    assert missing(parse_yaml(path.read_text()).value, schema) == set()


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} == {"home", "every-key"}


def test_defaults(folder: Path) -> None:
    spec = parse_chain_file(chain_text(), folder / "chain.yaml")
    assert spec.lans[0].mode is None
    assert spec.wan.interface is None
    assert spec.dns_upstream is None
    assert spec.wires == IPv4Network("198.19.0.0/16")
    assert [profile.name for profile in spec.hops[0].pool] == ["se-1", "se-2"]
    hop = spec.hops[0]
    assert hop.line == 4
    assert (hop.rotate, hop.keep, hop.prefer) == (None, None, None)
    assert (hop.standby, hop.sessions) == (False, 0)
    assert spec.independent == INDEPENDENCE
    assert spec.rotation == RotationSpec(
        per_hop_hour=6, per_chain_hour=12, quiet=None, drain=600.0, guard_budget=4
    )
    assert spec.health == HealthSpec(interval=0.25, patience=12.0, phi=8.0, loss=0.2, probe=None)


def test_several_networks_of_devices(folder: Path) -> None:
    one, other = "{interface: eth1, address: 192.168.10.254/24}", "{interface: br0, address: "
    text = chain_text().replace(one, f"[{one}, {other}10.3.0.1/16}}]")
    spec = parse_chain_file(text, folder / "chain.yaml")
    assert [str(lan.address) for lan in spec.lans] == ["192.168.10.254/24", "10.3.0.1/16"]
    text = text.replace("10.3.0.1/16", "192.168.0.1/16")
    complaints = check_overlap(parse_chain_file(text, folder / "chain.yaml"))
    assert [complaint.code for complaint in complaints] == ["C138"]
    assert complaints[0].line == 2


@pytest.mark.parametrize(
    ("lan", "said"),
    [
        ("[]", "2:6 C114 expected at least one network, found an empty list"),
        ("[{interface: eth1}]", "2:7 C106 the key `address` is missing in this network"),
        ("{interface: eth1}", "2:6 C106 the key `address` is missing in `lan`"),
        ("[eth1]", "2:7 C107 expected the keys `interface`, `address`, `mode`"),
        ("eth1", "2:6 C107 expected the keys `interface`, `address`, `mode`"),
    ],
)
def test_broken_networks_of_devices(folder: Path, lan: str, said: str) -> None:
    text = chain_text().replace("{interface: eth1, address: 192.168.10.254/24}", lan)
    with pytest.raises(MendFile) as caught:
        parse_chain_file(text, folder / "chain.yaml")
    found = [f"{one.line}:{one.column} {one.code} {one.message}" for one in caught.value.complaints]
    assert found == [said]


@pytest.mark.parametrize(
    ("wan", "said"),
    [
        ("mode: macvlan", "5:13 C147 `mode: macvlan` needs `address`, one of the chain's own"),
        ("address: 203.0.113.5/24", "C147 `address` goes with `mode: macvlan` or `mode: bridge`"),
        ("router: 203.0.113.1", "C147 `router` goes with `mode: macvlan` or `mode: bridge`"),
        (
            "mode: bridge, address: 203.0.113.5/24, router: 198.51.100.1",
            "C147 198.51.100.1 is no other address in 203.0.113.0/24",
        ),
    ],
)
def test_broken_ways_out(folder: Path, wan: str, said: str) -> None:
    with pytest.raises(MendFile) as caught:
        parse_chain_file(chain_text(more=f"wan: {{{wan}}}\n"), folder / "chain.yaml")
    (one,) = caught.value.complaints
    assert f"{one.line}:{one.column} {one.code} {one.message}".endswith(said)


def test_every_key(folder: Path) -> None:
    more = (
        "wan: {interface: eth0, mode: nat}\ndns: {upstream: 9.9.9.9}\n"
        "wires: {network: 10.99.0.0/20}\n"
    )
    text = chain_text(more=more).replace("/24}", "/24, mode: bridge}")
    spec = parse_chain_file(text, folder / "chain.yaml")
    assert spec.lans[0].mode is LanMode.BRIDGE
    assert spec.wan.interface == "eth0"
    assert spec.dns_upstream == IPv4Address("9.9.9.9")
    assert spec.wires == IPv4Network("10.99.0.0/20")


def test_how_a_hop_changes_its_server(folder: Path) -> None:
    def hop(keys: str) -> HopSpec:
        return parse_chain_file(chain_text(hop=keys), folder / "chain.yaml").hops[0]

    assert hop("rotate: 6h-24h").rotate == (21_600, 86_400)
    assert hop("rotate: 12h").rotate == (43_200, 43_200)
    assert hop("rotate: 10m-365d").rotate == (600, 31_536_000), "six times an hour"
    assert hop("keep: 30d").keep == 2_592_000
    assert hop("prefer: se-2").prefer == "se-2"
    assert hop("standby: true").standby is True
    assert hop("standby: false, sessions: 1").sessions == 1
    assert hop("sessions: 3.0, standby: true").sessions == 3


def test_how_a_chain_changes_its_servers(folder: Path) -> None:
    more = (
        "rotation: {per_hour: 3, per_chain_hour: 9, quiet: 22:00-06:30, drain: 90s, guards: 2}\n"
        "health: {interval: 1s, patience: 30s, phi: 5.5, loss: 7%, probe: 9.9.9.9, sweep: 5m}\n"
    )
    spec = parse_chain_file(chain_text(more=more), folder / "chain.yaml")
    assert spec.rotation == RotationSpec(3, 9, (time(22), time(6, 30)), 90.0, 2)
    assert spec.health == HealthSpec(1.0, 30.0, 5.5, 0.07, IPv4Address("9.9.9.9"), 300.0)
    ends = "health: {interval: 50ms, patience: 10m, phi: 100, loss: 99%}\n"
    spec = parse_chain_file(chain_text(more=ends), folder / "chain.yaml")
    assert spec.health == HealthSpec(0.05, 600.0, 100.0, 0.99)


@pytest.mark.parametrize(
    ("written", "require", "prefer"),
    [
        ("{}", {Trait.SERVER}, {Trait.NETWORK, Trait.OPERATOR, Trait.COUNTRY, Trait.ASN}),
        ("{require: server, prefer: country}", {Trait.SERVER}, {Trait.COUNTRY}),
        ("{prefer: []}", {Trait.SERVER}, set()),
        (
            "{require: [server, network, operator]}",
            {Trait.SERVER, Trait.NETWORK, Trait.OPERATOR},
            {Trait.COUNTRY, Trait.ASN},
        ),
        (
            "{require: [server, network], prefer: [asn]}",
            {Trait.SERVER, Trait.NETWORK},
            {Trait.ASN},
        ),
    ],
)
def test_what_servers_may_not_share(
    written: str, require: set[Trait], prefer: set[Trait], folder: Path
) -> None:
    text = chain_text(more=f"independent: {written}\n")
    spec = parse_chain_file(text, folder / "chain.yaml")
    assert spec.independent == Independence(frozenset(require), frozenset(prefer))


def test_norway_is_a_country(folder: Path) -> None:
    (folder / "no-osl-01.conf").write_text(profile_text())
    spec = parse_chain_file(chain_text(hop="country: no"), folder / "chain.yaml")
    assert [profile.name for profile in spec.hops[0].pool] == ["no-osl-01"]


def test_an_anchor_may_be_used_again(folder: Path) -> None:
    text = chain_text(hops=2).replace("servers: *.conf", "servers: &all '*.conf'", 1)
    text = text.replace("servers: *.conf", "servers: *all")
    spec = parse_chain_file(text, folder / "chain.yaml")
    assert spec.hops[0].pool == spec.hops[1].pool


def test_a_server_may_stand_in_several_hops_but_once_in_each(folder: Path) -> None:
    servers = "[se-1.conf, ./se-1.conf, '*.conf']"
    spec = parse_chain_file(chain_text(hops=2, servers=servers), folder / "chain.yaml")
    assert [len(hop.pool) for hop in spec.hops] == [2, 2]


def test_the_same_text_gives_an_equal_value(folder: Path) -> None:
    one = parse_chain_file(chain_text(), folder / "chain.yaml")
    other = parse_chain_file("# moved\n" + chain_text(), folder / "chain.yaml")
    assert one == other
    assert hash(one) == hash(other)


def test_an_exit_needs_a_resolver(folder: Path) -> None:
    (folder / "mute.conf").write_text(profile_text().replace("DNS = 10.64.0.1\n", ""))
    assert _codes(chain_text(servers="mute.conf"), folder) == ["C122"]
    named = chain_text(servers="mute.conf", more="dns: {upstream: 9.9.9.9}\n")
    assert parse_chain_file(named, folder / "chain.yaml").dns_upstream == IPv4Address("9.9.9.9")


def test_complaints_of_file_and_profiles_come_together(folder: Path) -> None:
    (folder / "se-2.conf").write_text(profile_text(interface="PostUp = true", endpoint="x"))
    text = chain_text(lan="192.168.10.0/24", hops=2, more="policy: {}\n")
    codes = _codes(text, folder)
    assert sorted(set(codes)) == ["C105", "C112", "C203", "C208"]


@pytest.mark.parametrize("kind", ["missing", "directory", "large", "latin-1"])
def test_what_is_no_chain_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    match kind:
        case "directory":
            path.mkdir()
        case "large":
            path.write_bytes(chain_text().encode() + b"#" * LARGEST)
        case "latin-1":
            path.write_bytes("# Zürich".encode("latin-1"))
    with pytest.raises(MendFile) as caught:
        load_chain_file(path)
    assert [complaint.code for complaint in caught.value.complaints] == ["C101"]


def test_a_pattern_gone_wrong(folder: Path) -> None:
    for number in range(LARGEST_POOL):
        (folder / f"{number}.conf").touch()
    assert _codes(chain_text(), folder) == ["C117"]


_VOCABULARY = (
    "chain lan hops wan dns wires interface address mode name servers upstream network nat"
    " home eth1 192.168.10.254/24 *.conf se-1.conf vault policy ~ true 3 0x1F .nan account list"
    " rotate keep prefer standby sessions country independent require rotation per_hour quiet"
    " health loss phi 6h 1s-2h 20% no se-1 server"
)
_WORDS = st.sampled_from(_VOCABULARY.split())
_TREES = st.recursive(
    _WORDS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(_WORDS, inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=8,
)
_FILES = st.one_of(
    st.text(max_size=200),
    st.text(alphabet=":-{}[]&*!|>'\"%@`#,? \n\tab1<~\\", max_size=80),
    st.lists(st.tuples(_WORDS, _TREES), max_size=6).map(
        lambda pairs: "\n".join(f"{key}: {value}" for key, value in pairs)
    ),
    st.tuples(st.just(chain_text()), st.text(max_size=30)).map("".join),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(text=_FILES)
@example(text='chain: "\\ud800"\nhops: [{servers: "\\ud800*"}]')
@example(text="hops: [{servers: '[z-a]*'}]")
@example(text="? [a]\n: b")
@example(text="&a [*a]")
@example(text="hops: &a [*a]")
@example(text="[" * 2000)
def test_any_text_gives_a_chain_or_complaints(folder: Path, text: str) -> None:
    found = outcome(lambda: parse_chain_file(text, folder / "chain.yaml"))
    if isinstance(found, ChainSpec):
        return
    assert found
    assert all(complaint.line >= 1 and complaint.column >= 1 for complaint in found)
    assert all(str(complaint).encode() for complaint in found), "can be printed"
