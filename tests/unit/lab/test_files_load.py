"""What a lab writes is what a chain reads."""

from __future__ import annotations

import base64
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from chainctl.lab.layout import LabSpec, Layout
from chainctl.lab.openvpn import make_authority, make_openvpn_keys
from chainctl.lab.providers import KeyPair, render_files
from chainctl.spec.chain_file import load_chain_file
from chainctl.spec.logins import check_logins
from tests.unit.lab.test_providers import keys_for


def random_pair() -> KeyPair:
    private, public = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    return KeyPair(private, public)


@pytest.mark.parametrize(
    ("hops", "via"), [(1, ""), (3, ""), (14, ""), (3, "wg,udp,tcp"), (2, "tcp,tcp")]
)
def test_the_chain_file_and_its_pools(hops: int, via: str, tmp_path: Path) -> None:
    layout = Layout(LabSpec(hops=hops, spares=4, via=via))
    authority = make_authority() if via else None
    signed = {
        each.name: make_openvpn_keys(each, authority) for each in layout.servers if each.via != "wg"
    }
    keys = {
        name: replace(each, own=random_pair(), devices=tuple(random_pair() for _ in each.devices))
        for name, each in keys_for(layout).items()
    }
    for path, text in render_files(layout, keys, signed, authority).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, newline="")
    chain = load_chain_file(tmp_path / "chain.yaml")
    assert chain.name == layout.spec.name
    found = {
        (number, profile.name, profile.endpoint.host, profile.endpoint.port)
        for number, hop in enumerate(chain.hops, 1)
        for profile in hop.pool
    }
    assert not list(check_logins(chain))
    assert found == {
        (server.hop, server.label, server.uplink.ip, server.port) for server in layout.servers
    }
