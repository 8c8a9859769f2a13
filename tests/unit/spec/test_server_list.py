from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chainctl.errors import MendFile
from chainctl.spec.model import Endpoint, Labels
from chainctl.spec.server_list import (
    LARGEST,
    MOST_SERVERS,
    ListedServer,
    load_server_list,
    parse_server_list,
)
from tests.unit.spec.builders import PRIVATE, key, outcome

HEADER = "name,endpoint,public_key"
ONE, TWO = key("one"), key("two")
LIST = Path("relays.csv")


def test_values() -> None:
    text = (
        "# Relays of March.\n\n"
        f"{HEADER},country,city,operator,asn\n"
        f"se-1,192.0.2.1:51820,{ONE},se,Göteborg,31173,39351\n"
        f"se-2 , SE-2.example:443 ,{TWO},,,,\n"
        "# se-3 is gone\n"
        f"se-4,192.0.2.4:1,{ONE}\n"
    )
    assert parse_server_list(text, LIST) == (
        ListedServer(
            "se-1",
            Endpoint(IPv4Address("192.0.2.1"), 51820),
            ONE,
            Labels("se", "göteborg", "31173", 39351),
        ),
        ListedServer("se-2", Endpoint("se-2.example", 443), TWO, Labels()),
        ListedServer("se-4", Endpoint(IPv4Address("192.0.2.4"), 1), ONE, Labels()),
    )


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\r\nse-1,192.0.2.1:1,{ONE}\r\n",
        f"\ufeff{HEADER}\nse-1,192.0.2.1:1,{ONE}",
        f"Public_Key, NAME ,Endpoint\n{ONE},se-1,192.0.2.1:1\n",
    ],
    ids=["crlf", "bom", "order"],
)
def test_spellings_of_the_same_list(text: str, tmp_path: Path) -> None:
    path = tmp_path / "relays.csv"
    path.write_text(text, newline="")
    (server,) = load_server_list(path)
    assert server == ListedServer("se-1", Endpoint(IPv4Address("192.0.2.1"), 1), ONE, Labels())


@pytest.mark.parametrize("kind", ["missing", "directory", "large", "latin-1"])
def test_what_is_no_list(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "relays.csv"
    match kind:
        case "directory":
            path.mkdir()
        case "large":
            path.write_bytes(b"#" * (LARGEST + 1))
        case "latin-1":
            path.write_bytes("# Zürich".encode("latin-1"))
    with pytest.raises(MendFile) as caught:
        load_server_list(path)
    assert [complaint.code for complaint in caught.value.complaints] == ["C216"]


def test_too_many_servers() -> None:
    rows = [f"se-{number},192.0.2.1:1,{ONE}\n" for number in range(MOST_SERVERS + 1)]
    with pytest.raises(MendFile) as caught:
        parse_server_list(f"{HEADER}\n{''.join(rows)}", LIST)
    (complaint,) = caught.value.complaints
    assert (complaint.code, complaint.line) == ("C216", MOST_SERVERS + 2)
    assert len(parse_server_list(f"{HEADER}\n{''.join(rows[1:])}", LIST)) == MOST_SERVERS


_CELLS = st.one_of(
    st.sampled_from(["se-1", "se-2", "192.0.2.1:51820", ONE, TWO, PRIVATE[:-1], "se", "x" * 70]),
    st.sampled_from([*HEADER.split(","), "country", "asn", "operator", "#", ""]),
    st.text(max_size=12),
)
_LINES = st.lists(_CELLS, max_size=8).map(",".join)


@given(st.lists(_LINES, max_size=6).map("\n".join), st.booleans())
@example(f"se-1,192.0.2.1:²,{ONE}", True)
@example("\x00,\u2028,\ud800", True)
def test_any_text_gives_servers_or_complaints(text: str, with_header: bool) -> None:
    text = f"{HEADER},country,city,operator,asn\n{text}" if with_header else text
    found = outcome(lambda: parse_server_list(text, LIST))
    assert found
    for item in found:
        if isinstance(item, ListedServer):
            assert item.name
            assert 1 <= item.endpoint.port <= 65535
        else:
            assert 1 <= item.line <= text.count("\n") + 1
            assert item.column >= 1
            assert str(item).encode()
            assert PRIVATE[:-1] not in str(item), "may be a secret"
