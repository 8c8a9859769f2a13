from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.spec.countries import COUNTRIES
from chainctl.spec.labels import combine, labels_of_name, read_comments
from chainctl.spec.model import Labels
from tests.unit.spec.builders import profile, profile_text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ch-zrh-01", Labels("ch", "zrh")),
        ("se_sto-wg-001", Labels("se", "sto")),
        ("gb-lon-wg-301", Labels("gb", "lon")),
        ("uk-lon-3", Labels("gb", "lon")),
        ("no-osl-wg-001", Labels("no", "osl")),
        ("CH-12", Labels("ch")),
        ("wg-NL-1037", Labels("nl")),
        ("US#12", Labels("us")),
        ("us1234.nordvpn.com", Labels("us")),
        ("us1234.nordvpn.com.udp", Labels("us")),
    ],
)
def test_names_that_say_where(name: str, expected: Labels) -> None:
    assert labels_of_name(name) == expected
    assert profile(name).labels == expected


@pytest.mark.parametrize(
    "name",
    [
        "my-vpn-1",  # Malaysia
        "gw1",  # Guinea-Bissau
        "sv1.example.com",
        "no-log-1",
        "no-dns",
        "in-01",
        "xx-zrh-01",
        "wg0",
        "IS-US-1",  # in at one, out at the other
        "se-sto-wg-001-us-nyc-wg-101",
        "switzerland-01",
        "ch-zrh",
        "XX-1",
    ],
)
def test_names_that_say_nothing(name: str) -> None:
    assert labels_of_name(name) == Labels()


def test_comments_of_a_profile(caplog: pytest.LogCaptureFixture) -> None:
    text = "# country = CH\n#city=Zürich\r\n## Operator = Data Packet Ltd.\n# asn = AS64496\n"
    said, flaws = read_comments(text + profile_text())
    assert said == Labels("ch", "zürich", "data packet ltd.", 64496)
    assert flaws == []


def test_comments_that_say_nothing_usable() -> None:
    text = "# country = Switzerland\n  # asn = 0\n# city =\n# operator = a\n# operator = b\n"
    said, flaws = read_comments(text)
    assert said == Labels(operator="a")
    assert [(flaw.place.line, flaw.place.column, flaw.code) for flaw in flaws] == [
        (1, 3, "N106"),
        (2, 5, "N106"),
        (3, 3, "N106"),
        (5, 3, "N106"),
    ]


@pytest.mark.parametrize("text", ["country = ch", "# countries = ch", "# the country = ch", "MTU"])
def test_what_is_no_such_comment(text: str) -> None:
    assert read_comments(text) == (Labels(), [])


def test_what_is_said_counts_more_than_the_name() -> None:
    assert combine("ch-zrh-01", Labels(operator="x")) == Labels("ch", "zrh", "x")
    assert combine("ch-zrh-01", Labels(city="bern")) == Labels("ch", "bern")
    assert combine("ch-zrh-01", Labels("ch")) == Labels("ch", "zrh")
    assert combine("ch-zrh-01", Labels("se")) == Labels("se"), "Zurich is not in Sweden"


def test_a_secret_in_a_comment_is_not_shown() -> None:
    _, flaws = read_comments(f"# country = {profile().private_key.reveal()}")
    assert profile().private_key.reveal() not in flaws[0].message


@given(st.text(max_size=30))
def test_a_country_is_always_one_of_the_list(name: str) -> None:
    country = labels_of_name(name).country
    assert country is None or country in COUNTRIES.values()
