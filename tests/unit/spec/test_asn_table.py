"""Who announces an address, by a table of the user's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.errors import MendFile
from chainctl.spec.asn_table import NO_TABLE, AsnTable, flatten, load_asn_table, parse_asn_table
from chainctl.spec.chain_file import load_chain_file
from chainctl.supervisor.resolve import candidates
from tests.unit.spec.builders import chain_text, profile_text

TABLE = """\
prefix,asn,organisation
# nested, as announced
10.0.0.0/8,100,Ten
10.1.0.0/16,AS200
10.1.2.0/24, as300 ,with a name

2001:db8::/32,64496
192.0.2.128/25,400
255.255.255.0/24,500
"""


def parse(text: str) -> AsnTable:
    return parse_asn_table(text, Path("asn.csv"))


@pytest.mark.parametrize(
    ("address", "number"),
    [
        ("10.0.0.0", 100),
        ("10.1.0.0", 200),
        ("10.1.2.0", 300),
        ("10.1.2.255", 300),
        ("10.1.3.0", 200),
        ("10.2.0.0", 100),
        ("10.255.255.255", 100),
        ("11.0.0.0", None),
        ("9.255.255.255", None),
        ("192.0.2.127", None),
        ("192.0.2.128", 400),
        ("255.255.255.255", 500),
        ("0.0.0.0", None),
    ],
)
def test_the_longest_prefix_counts(address: str, number: int | None) -> None:
    assert parse(TABLE).lookup(IPv4Address(address)) == number


def test_without_a_table_nobody_is_known() -> None:
    assert NO_TABLE.lookup(IPv4Address("10.0.0.1")) is None
    assert parse("").lookup(IPv4Address("10.0.0.1")) is None


prefixes = st.tuples(st.integers(0, 255), st.integers(24, 32), st.integers(1, 9))


@given(st.lists(prefixes, max_size=12, unique_by=lambda each: (each[0] >> (32 - each[1]), each[1])))
def test_ranges_say_what_a_search_through_all_prefixes_says(
    written: list[tuple[int, int, int]],
) -> None:
    base = int(IPv4Address("198.51.100.0"))
    networks = {
        IPv4Network(((base + low) >> (32 - length) << (32 - length), length)): number
        for low, length, number in written
    }
    table = flatten(
        sorted((int(n.network_address), n.prefixlen, number) for n, number in networks.items())
    )
    for low in range(-1, 257):
        address = IPv4Address(base + low)
        covering = [network for network in networks if address in network]
        best = max(covering, key=lambda network: network.prefixlen, default=None)
        assert table.lookup(address) == (networks[best] if best else None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("10.0.0.1/8,1", "expected a prefix"),
        ("10.0.0/8,1", "expected a prefix"),
        ("10.0.0.0/33,1", "expected a prefix"),
        ("10.0.0.256/32,1", "expected a prefix"),
        ("10.0.0.0/8", "expected the number"),
        ("10.0.0.0/8,ASx", "expected the number"),
        ("10.0.0.0/8,4294967296", "expected the number"),
    ],
)
def test_what_is_no_line_of_a_table_is_complained_about(line: str, words: str) -> None:
    with pytest.raises(MendFile) as caught:
        parse(f"192.0.2.0/24,1\n{line}\n")
    (complaint,) = caught.value.complaints
    assert (complaint.line, complaint.code) == (2, "C139")
    assert words in complaint.message


def test_a_file_that_is_something_else_is_complained_about_a_few_times_only() -> None:
    with pytest.raises(MendFile) as caught:
        parse("1 something else\n" * 1000)
    assert len(caught.value.complaints) == 10


def test_a_table_is_read_again_when_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "asn.csv"
    file.write_text("10.0.0.0/8,1\n")
    assert load_asn_table(file) is load_asn_table(file)
    file.write_text("10.0.0.0/8,22\n")
    assert load_asn_table(file).lookup(IPv4Address("10.0.0.1")) == 22
    for missing in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(MendFile) as caught:
            load_asn_table(missing)
        assert caught.value.code == "C139"


def test_a_label_outranks_the_table(tmp_path: Path) -> None:
    (tmp_path / "asn.csv").write_text("192.0.2.0/24,64500\n")
    for number, comment in ((1, ""), (2, "# asn = 64511\n"), (3, "")):
        text = comment + profile_text(endpoint=f"192.0.2.{number}:51820")
        (tmp_path / f"server{number}.conf").write_text(text)
    more = "independent: {asn_table: ./asn.csv}\n"
    (tmp_path / "chain.yaml").write_text(chain_text(more=more))
    (hop,) = load_chain_file(tmp_path / "chain.yaml").hops
    assert {one.server: one.asn for one in candidates(hop, {})} == {
        "server1": 64500,
        "server2": 64511,
        "server3": 64500,
    }
    (tmp_path / "chain.yaml").write_text(chain_text(more=more.replace("asn.csv", "no.csv")))
    with pytest.raises(MendFile) as caught:
        load_chain_file(tmp_path / "chain.yaml")
    assert [each.code for each in caught.value.complaints] == ["C139"]
