from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from chainctl.model.secret import Secret
from chainctl.model.wireguard import WireGuardConfig

KEY = base64.b64encode(bytes(range(32))).decode()
CONFIG = WireGuardConfig(Secret(KEY), 20064, KEY, IPv4Address("198.51.100.7"), 51820)


@pytest.mark.parametrize("key", ["", "AAAA", KEY[:-1], KEY + "AAAA", "no base64!", "ä" * 44])
def test_what_is_no_key_is_refused_and_not_repeated(key: str) -> None:
    for changed in ({"peer_public_key": key}, {"preshared": Secret(key)}):
        with pytest.raises(ValueError, match="a WireGuard key") as caught:
            replace(CONFIG, **changed)
        assert not key or key not in str(caught.value)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_are_pinned_ones(port: int) -> None:
    with pytest.raises(ValueError, match="is no port"):
        replace(CONFIG, listen_port=port)


def test_a_key_of_zeros_is_no_preshared_key() -> None:
    zeros = Secret(base64.b64encode(bytes(32)).decode())
    assert replace(CONFIG, preshared=zeros).digest == CONFIG.digest
