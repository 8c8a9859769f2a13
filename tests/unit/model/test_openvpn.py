from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from chainctl.model.openvpn import (
    ControlKey,
    Credentials,
    Framing,
    Identity,
    KeyWrap,
    OpenVpnConfig,
    OpenVpnProfile,
    PrivateKey,
    ServerCheck,
    TlsOptions,
    quoted,
    render,
)
from chainctl.model.parts import TCP, UDP
from chainctl.model.secret import Secret
from tests.conftest import Golden

GOLDEN = Path(__file__).with_name("golden")

PLAIN = OpenVpnProfile(ca=(b"authority",), check=ServerCheck(), login=True)
MANY = OpenVpnProfile(
    ca=(b"authority" * 9, b"above it"),
    check=ServerCheck(name='a "name" \\', name_kind="name", fingerprints=("ab" * 32,)),
    identity=Identity((b"client",), PrivateKey("EC PRIVATE KEY", Secret("a2V5"))),
    control=ControlKey(KeyWrap.AUTH, Secret("0f" * 256), 1),
    crl=(b"called back",),
    fallback="AES-256-GCM",
    auth="SHA512",
    tls=TlsOptions("1.3", ciphersuites="TLS_AES_256_GCM_SHA384", groups="X25519"),
    framing=Framing.LZO_NO,
    fragment=1300,
    tun_mtu=1400,
    reneg=0,
)
CONFIG = OpenVpnConfig(IPv4Address("198.51.100.7"), 1194, UDP, 20064, PLAIN)
LOCAL = IPv4Address("198.19.0.3")


@pytest.mark.parametrize(("name", "profile"), [("plain", PLAIN), ("many", MANY)])
def test_what_the_client_reads(name: str, profile: OpenVpnProfile, golden: Golden) -> None:
    config = replace(CONFIG, profile=profile)
    text = render(config, link="tunA", local=LOCAL, management="/m")
    # No file of the project looks as if a private key were in it.
    golden(GOLDEN / f"openvpn-{name}.conf", text.replace(" PRIVATE KEY-", " SECRET KEY-"))


def test_over_tcp_no_goodbye_is_sent() -> None:
    text = render(
        replace(CONFIG, protocol=TCP, profile=MANY), link="t", local=LOCAL, management="/m"
    )
    assert "proto tcp4-client" in text
    assert "explicit-exit-notify" not in text


@pytest.mark.parametrize("changed", [{"endpoint_port": 0}, {"source_port": 65536}, {"protocol": 1}])
def test_what_is_no_port_or_protocol_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no"):
        replace(CONFIG, **changed)


def test_somebody_has_to_vouch_for_the_server() -> None:
    with pytest.raises(ValueError, match="tells the server"):
        ServerCheck(usage=False)
    with pytest.raises(ValueError, match="neither"):
        replace(PLAIN, ca=())


def test_framing_costs_what_it_adds() -> None:
    assert PLAIN.framing_overhead == 0
    assert MANY.framing_overhead == 5


def test_the_digest_tells_logins_apart_and_shows_none() -> None:
    logins = [Credentials(Secret(user), Secret("long word")) for user in ("one", "two")]
    configs = [CONFIG] + [
        replace(CONFIG, profile=replace(PLAIN, credentials=login)) for login in logins
    ]
    assert len({config.digest for config in configs}) == 3
    assert configs[1].digest == replace(configs[1]).digest
    assert "long word" not in repr(configs[1])


def test_secrets_are_not_shown() -> None:
    key = base64.b64encode(b"key").decode()
    assert key not in repr(MANY)
    assert "0f0f" not in repr(MANY)


def test_a_quoted_word_is_one_parameter() -> None:
    assert quoted('C=CH, CN="x" \\y') == '"C=CH, CN=\\"x\\" \\\\y"'
