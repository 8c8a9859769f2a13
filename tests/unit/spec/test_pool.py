from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from chainctl.spec.chain_file import parse_chain_file
from chainctl.spec.forms import Account
from chainctl.spec.model import ChainSpec, Endpoint, Labels, WireGuardProfile
from chainctl.spec.overlap import check_overlap
from chainctl.spec.pool import load_pool
from tests.unit.spec.builders import PRIVATE, PUBLIC, SHARED, chain_text, key, profile_text

ONE, TWO = key("one"), key("two")
ACCOUNT = Account("account.conf", "relays.csv")
SERVERS = "{account: account.conf, list: relays.csv}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    peer = f"PresharedKey = {SHARED}\nPersistentKeepalive = 20"
    text = profile_text(address="10.64.0.2/32, fc00::2/128", interface="MTU = 1380", peer=peer)
    (tmp_path / "account.conf").write_text(f"# operator = Mullvad\n# country = de\n{text}")
    (tmp_path / "relays.csv").write_text(
        "name,endpoint,public_key,country,operator\n"
        f"se-sto-01,192.0.2.31:51820,{ONE},,\n"
        f"relay,relay.example:443,{TWO},ch,Other\n"
    )
    (tmp_path / "nl-ams-01.conf").write_text(profile_text(endpoint="192.0.2.41:51820"))
    return tmp_path


def _spec(
    folder: Path, servers: str = SERVERS, *, lan: str = "192.168.10.254/24", hop: str = ""
) -> ChainSpec:
    return parse_chain_file(chain_text(servers=servers, lan=lan, hop=hop), folder / "chain.yaml")


def test_an_account_serves_all_servers_of_its_list(folder: Path) -> None:
    pool = load_pool([ACCOUNT], folder)
    assert pool.whole
    profiles = [each for each in pool.profiles if isinstance(each, WireGuardProfile)]
    own, listed, other = profiles
    assert (own.name, own.peer_public_key) == ("account", PUBLIC)
    assert own.labels == Labels("de", operator="mullvad")
    assert listed.name == "se-sto-01"
    assert listed.peer_public_key == ONE
    assert listed.endpoint == Endpoint(IPv4Address("192.0.2.31"), 51820)
    assert listed.labels == Labels("se", "sto", "mullvad")
    assert listed.file == folder / "relays.csv"
    assert (other.name, other.endpoint) == ("relay", Endpoint("relay.example", 443))
    assert other.labels == Labels("ch", operator="other")
    for profile in profiles:
        assert profile.private_key.reveal() == PRIVATE
        assert profile.addresses == own.addresses
        assert profile.dns == own.dns
        assert profile.preshared == own.preshared
        assert (profile.mtu, profile.keepalive) == (1380, 20)


def test_notices_of_an_account_come_once(folder: Path) -> None:
    assert [notice.code for notice in _spec(folder).notices] == ["N101"]


def test_the_list_names_the_server_of_the_account(folder: Path) -> None:
    with (folder / "relays.csv").open("a") as file:
        file.write(f"de-ber-01,192.0.2.10:51820,{PUBLIC},,\n")
    names = [profile.name for profile in load_pool([ACCOUNT], folder).profiles]
    assert names == ["se-sto-01", "relay", "de-ber-01"]
    assert [notice.code for notice in _spec(folder).notices] == ["N101"]


def test_patterns_and_accounts_mix(folder: Path) -> None:
    spec = _spec(folder, f"[./nl-*.conf, {SERVERS}]")
    names = [profile.name for profile in spec.hops[0].pool]
    assert names == ["nl-ams-01", "account", "se-sto-01", "relay"]


def test_an_account_that_a_pattern_names_too_counts_once(folder: Path) -> None:
    for servers in (f"[./*.conf, {SERVERS}]", f"[{SERVERS}, ./*.conf]"):
        names = sorted(profile.name for profile in _spec(folder, servers).hops[0].pool)
        assert names == ["account", "nl-ams-01", "relay", "se-sto-01"]


def test_two_hops_may_use_one_account(folder: Path) -> None:
    spec = _spec(folder)
    assert _spec(folder, hop="sessions: 2").hops[0].pool == spec.hops[0].pool


def test_what_all_servers_of_an_account_share_is_said_once(folder: Path) -> None:
    spec = _spec(folder, lan="10.64.0.200/24")
    assert [str(complaint).partition(" ")[2] for complaint in check_overlap(spec)] == [
        f"{folder}/chain.yaml:4:27 account (and 2 more): the tunnel's own address 10.64.0.2 lies "
        "in the LAN 10.64.0.0/24",
        f"{folder}/chain.yaml:4:27 account (and 2 more): the resolver 10.64.0.1 lies in the LAN "
        "10.64.0.0/24",
    ]


def test_a_country_filters_the_pool(folder: Path) -> None:
    spec = _spec(folder, f"[{SERVERS}, ./*.conf]", hop="country: [se, nl]")
    assert [profile.name for profile in spec.hops[0].pool] == ["se-sto-01", "nl-ams-01"]
    assert [notice.code for notice in spec.notices] == ["N101"], "also of a server left out"


def test_servers_of_unknown_countries_are_left_out_with_a_word(folder: Path) -> None:
    (folder / "somewhere.conf").write_text(profile_text())
    spec = _spec(folder, "./*.conf", hop="country: nl")
    assert [profile.name for profile in spec.hops[0].pool] == ["nl-ams-01"]
    assert [str(notice) for notice in spec.hops[0].notices] == [
        f"[N107] {folder}/chain.yaml:4:46 servers are left out: the country of `somewhere` is "
        "not known; a line `# country = ch` in a profile says it"
    ]


@pytest.mark.parametrize(
    ("servers", "listed"),
    [
        ("./nl-ams-01.conf", True),
        ("[./nl-ams-01.conf, ./account.conf]", True),
        ("./nl-*.conf", False),
        ("[./account.conf, ./nl-*.conf]", False),
        (SERVERS, False),
    ],
)
def test_an_order_is_somebodys_choice_where_each_server_is_named(
    folder: Path, servers: str, listed: bool
) -> None:
    assert _spec(folder, servers).hops[0].listed is listed
