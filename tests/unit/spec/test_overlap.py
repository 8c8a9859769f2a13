from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from chainctl.spec.chain_file import parse_chain_file
from chainctl.spec.model import ChainSpec
from chainctl.spec.overlap import check_overlap
from tests.unit.spec.builders import chain_text, profile_text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _spec(
    folder: Path, *, lan: str = "192.168.10.254/24", more: str = "", **parts: str
) -> ChainSpec:
    (folder / "se-1.conf").write_text(profile_text(**parts))
    return parse_chain_file(chain_text(lan=lan, more=more), Path("chain.yaml"))


def test_nothing_overlaps(folder: Path) -> None:
    routes = [IPv4Network(word) for word in ("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1")]
    routes += [IPv4Network("192.168.10.0/24"), IPv4Network("198.18.0.0/16")]
    assert check_overlap(_spec(folder), routes) == ()


@pytest.mark.parametrize(
    ("parts", "routes", "expected"),
    [
        (
            {"lan": "198.19.3.1/24"},
            [],
            "[C130] chain.yaml:2:33 the LAN 198.19.3.0/24 overlaps the addresses chainctl uses "
            "inside (198.19.0.0/16); give it others: `wires: {network: …}`",
        ),
        (
            {"more": "wires: {network: 192.168.0.0/16}\n"},
            [],
            "[C130] chain.yaml:2:33 the LAN 192.168.10.0/24 overlaps the addresses chainctl uses "
            "inside (192.168.0.0/16); give it others: `wires: {network: …}`",
        ),
        (
            {},
            ["198.19.7.0/24"],
            "[C135] chain.yaml:1:1 this machine has a route to 198.19.7.0/24, which overlaps the "
            "addresses chainctl uses inside (198.19.0.0/16); give it others: "
            "`wires: {network: …}`",
        ),
        (
            {"more": "wires: {network: 10.9.0.0/16}\n"},
            ["10.0.0.0/8"],
            "[C135] chain.yaml:5:18 this machine has a route to 10.0.0.0/8, which overlaps the "
            "addresses chainctl uses inside (10.9.0.0/16); give it others: "
            "`wires: {network: …}`",
        ),
        (
            {"address": "192.168.10.2/32"},
            [],
            "[C131] chain.yaml:4:27 se-1: the tunnel's own address 192.168.10.2 lies in the LAN "
            "192.168.10.0/24",
        ),
        (
            {"dns": "192.168.10.1"},
            [],
            "[C132] chain.yaml:4:27 se-1: the resolver 192.168.10.1 lies in the LAN "
            "192.168.10.0/24",
        ),
        (
            {"endpoint": "198.19.255.1:51820"},
            [],
            "[C133] chain.yaml:4:27 se-1: the server's address 198.19.255.1 lies in the addresses "
            "chainctl uses inside (198.19.0.0/16)",
        ),
        (
            {"endpoint": "se-1.example:51820"},
            [],
            "[C133] chain.yaml:4:27 se-1: the server's address 192.168.10.7 lies in the LAN "
            "192.168.10.0/24",
        ),
        (
            {"more": "dns: {upstream: 192.168.10.1}\n"},
            [],
            "[C132] chain.yaml:5:17 192.168.10.1 lies in the LAN 192.168.10.0/24; a resolver is "
            "asked through the chain",
        ),
    ],
)
def test_one_overlap(folder: Path, parts: dict[str, str], routes: list[str], expected: str) -> None:
    pins = {"se-1.example": IPv4Address("192.168.10.7")}
    found = check_overlap(_spec(folder, **parts), map(IPv4Network, routes), pins)
    assert [str(complaint) for complaint in found] == [expected]
