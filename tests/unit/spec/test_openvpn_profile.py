from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.openvpn import AEAD, Framing, KeyWrap, OpenVpnConfig, render
from chainctl.model.parts import TCP, UDP
from chainctl.spec.model import Endpoint, Labels, OpenVpnServer
from chainctl.spec.openvpn_profile import OpenVpnReading, read_openvpn
from chainctl.spec.remarks import Verdict
from tests.conftest import Golden
from tests.unit.spec.builders import CA, IDENTITY, openvpn_text, pem, static_key

HERE = Path(__file__).parent
PATH = Path("ch-zrh-01.ovpn")


def read(text: str, path: Path = PATH) -> OpenVpnReading:
    return read_openvpn(text.encode(), path)


def servers(text: str) -> tuple[OpenVpnServer, ...]:
    reading = read(text)
    assert reading.servers, [str(each) for each in reading.complaints(PATH)]
    return reading.servers


def server(text: str) -> OpenVpnServer:
    (one,) = servers(text)
    return one


def refused(text: str) -> list[tuple[int, str]]:
    reading = read(text)
    assert not reading.servers
    return [(each.line, each.code) for each in reading.complaints(PATH)]


def dropped(text: str) -> dict[str, str]:
    return {
        remark.word: remark.code
        for remark in read(text).remarks
        if remark.verdict is Verdict.DROPPED
    }


def test_values() -> None:
    text = openvpn_text(
        remote="remote ch1.example.net 1195 udp",
        blocks=f"{CA}{IDENTITY}<tls-auth>\n{static_key()}</tls-auth>\n<crl-verify>\n"
        f"{pem('X509 CRL', 'crl')}</crl-verify>\n",
        more="key-direction 1\nauth SHA512\ncomp-lzo no\nfragment 1300\ntun-mtu 1400\nreneg-sec 0\n"
        "verify-x509-name 'C=CH, CN=a \"b\"' subject\ndhcp-option DNS 10.8.8.1\n"
        "tls-version-min 1.3\ndata-ciphers AES-256-CBC:?CHACHA20-POLY1305:AES-128-GCM\n"
        "explicit-exit-notify 2\n# operator = Some One\n",
    )
    read = server(text)
    assert (read.name, read.labels) == ("ch-zrh-01", Labels("ch", "zrh", "some one"))
    assert (read.endpoint, read.protocol) == (Endpoint("ch1.example.net", 1195), UDP)
    assert read.dns == (IPv4Address("10.8.8.1"),)
    assert read.mtu == 1400
    assert read.addresses == ()
    profile = read.profile
    assert profile.identity is not None
    assert len(profile.identity.chain) == len(profile.ca) == len(profile.crl) == 1
    assert profile.control is not None
    assert (profile.control.wrap, profile.control.direction) == (KeyWrap.AUTH, 1)
    assert profile.check.usage
    assert (profile.check.name, profile.check.name_kind) == ('C=CH, CN=a "b"', "subject")
    assert profile.ciphers == ("CHACHA20-POLY1305", "AES-128-GCM")
    assert (profile.auth, profile.framing, profile.fragment) == ("SHA512", Framing.LZO_NO, 1300)
    assert profile.tls.minimum == "1.3"


def test_what_the_client_is_told_is_a_fixpoint(golden: Golden) -> None:
    """Read, written, and read again it says the same."""
    text = openvpn_text(
        blocks=f"{CA}{IDENTITY}<tls-crypt>\n{static_key()}</tls-crypt>\n",
        more="compress\nverify-x509-name 'a \"b\" \\'\ncipher AES-128-GCM\n",
    )
    first = server(text)
    written = _render(first)
    golden(HERE / "golden" / "openvpn.conf", written.replace(" PRIVATE KEY-", " SECRET KEY-"))
    provider = written[written.index("data-ciphers ") :]
    again = server(f"client\nremote 192.0.2.10 1194 udp4\n{provider}")
    assert again.profile == first.profile


def _render(server: OpenVpnServer) -> str:
    assert isinstance(server.endpoint.host, IPv4Address)
    config = OpenVpnConfig(
        server.endpoint.host, server.endpoint.port, server.protocol, 20064, server.profile
    )
    return render(config, link="tunA", local=IPv4Address("198.19.0.3"), management="/m")


def test_every_remote_is_a_server() -> None:
    text = openvpn_text(
        remote="remote 192.0.2.1 1194 udp\nremote 192.0.2.2\nremote 192.0.2.3 443 tcp-client\n"
        "remote 192.0.2.1 1194 udp\nremote 2001:db8::1 1194\nremote 192.0.2.4 1 udp6\n"
        "remote-random\nproto tcp\nport 80"
    )
    found = [(each.name, str(each.endpoint), each.protocol) for each in servers(text)]
    assert found == [
        ("ch-zrh-01#1", "192.0.2.1:1194", UDP),
        ("ch-zrh-01#2", "192.0.2.2:80", TCP),
        ("ch-zrh-01#3", "192.0.2.3:443", TCP),
    ]
    assert [bool(each.notices) for each in servers(text)] == [True, False, False]


def test_connections_say_their_own() -> None:
    text = openvpn_text(
        remote="proto tcp\nremote 192.0.2.9 1\n<connection>\nremote 192.0.2.1 1194 udp\n"
        "fragment 1200\n</connection>\n<connection>\nremote 192.0.2.2\nport 443\n"
        f"<tls-crypt>\n{static_key()}</tls-crypt>\n</connection>\nport 1",
    )
    first, second = servers(text)
    assert (str(first.endpoint), first.protocol, first.profile.fragment) == (
        "192.0.2.1:1194",
        UDP,
        1200,
    )
    assert (str(second.endpoint), second.protocol, second.profile.fragment) == (
        "192.0.2.2:443",
        TCP,
        0,
    )
    assert first.profile.control is None
    assert second.profile.control is not None
    assert dropped(text)["remote"] == "N105"


@pytest.mark.parametrize(
    ("more", "framing"),
    [
        ("", Framing.NONE),
        ("comp-lzo", Framing.LZO),
        ("comp-lzo adaptive", Framing.LZO),
        ("comp-lzo no", Framing.LZO_NO),
        ("compress", Framing.STUB),
        ("compress stub", Framing.STUB),
        ("compress stub-v2", Framing.STUB_V2),
        ("compress lz4-v2", Framing.LZ4_V2),
        ("compress lzo", Framing.COMPRESS_LZO),
        ("compress migrate", Framing.NONE),
    ],
)
def test_the_form_of_packets_is_kept(more: str, framing: Framing) -> None:
    assert server(openvpn_text(more=more)).profile.framing is framing


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ("up /etc/openvpn/update-resolv-conf", "N108"),
        ("down '/etc/openvpn/update-systemd-resolved'", "N108"),
        ("redirect-gateway def1 bypass-dhcp", "N108"),
        ("route 10.0.0.0 255.0.0.0", "N108"),
        ("dhcp-option DOMAIN lan", "N103"),
        ("dhcp-option DNS 127.0.0.1", "N103"),
        ("dhcp-option DNS6 2001:db8::1", "N101"),
        ("fast-io", "N109"),
        ("push-peer-info", "N109"),
        ("setenv UV_ID 4711", "N109"),
        ("setenv CLIENT_CERT 0", "N109"),
        ("ping-restart 0", "N105"),
        ("user nobody", "N105"),
        ("cipher BF-CBC", "N110"),
        ("data-ciphers AES-256-CBC", "N110"),
        ("tls-version-min 1.0", "N110"),
        ('tls-cipher "DEFAULT:@SECLEVEL=0"', "N110"),
        ("ns-cert-type server", "N110"),
        ("ignore-unknown-option whatever\nwhatever x", "N111"),
        ("setenv opt whatever x", "N111"),
        ("setenv FORWARD_COMPATIBLE 1\nwhatever", "N111"),
        ("reneg-sec 10", "N105"),
    ],
)
def test_what_does_no_harm_is_dropped(more: str, code: str) -> None:
    text = openvpn_text(more=more)
    word = more.rpartition("\n")[2].removeprefix("setenv opt ").split()[0]
    assert servers(text)
    assert dropped(text)[word] == code
    assert code in {notice.code for notice in server(text).notices}


def test_notices_are_few() -> None:
    text = openvpn_text(more="verb 3\nmute 20\nuser nobody\ngroup nogroup\nnice 1\nverb 4")
    assert [str(notice) for notice in server(text).notices] == [
        "[N105] ch-zrh-01.ovpn:6:1 verb, mute, user and 2 more are not used"
    ]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"remote": ""}, "C228"),
        ({"remote": "remote 2001:db8::1"}, "C228"),
        ({"remote": "remote 127.0.0.1 1194"}, "C208"),
        ({"remote": "remote 192.0.2.1 70000"}, "C208"),
        ({"remote": "remote 192.0.2.1 1194 sctp"}, "C208"),
        ({"remote": "remote -x 1194"}, "C208"),
        ({"blocks": ""}, "C228"),
        ({"login": ""}, "C228"),
        ({"blocks": CA + IDENTITY[: IDENTITY.index("<key>")]}, "C228"),
        ({"blocks": CA.replace("MI", "!!", 1).replace("ME", "!!", 1)}, "C226"),
        ({"blocks": CA.replace("</ca>", "")}, "C226"),
        ({"blocks": CA + CA.replace("CERTIFICATE", "PUBLIC KEY")}, "C226"),
        ({"blocks": CA + f"<ca>\n{pem('CERTIFICATE', 'other')}</ca>\n"}, "C211"),
        ({"blocks": CA + f"<tls-auth>\n{static_key()[:-60]}</tls-auth>\n"}, "C226"),
        ({"blocks": CA.replace("</ca>", "</ca> x")}, "C225"),
        ({"more": "dev tap"}, "C229"),
        ({"more": "dev-type tap0"}, "C229"),
        ({"more": "mode server"}, "C224"),
        ({"more": "key-direction 2"}, "C227"),
        ({"more": "key-direction 1"}, "C228"),
        ({"more": "auth none"}, "C227"),
        ({"more": "auth SHA1\nauth SHA256"}, "C211"),
        ({"more": "tls-version-max 1.1"}, "C227"),
        ({"more": "tls-version-min 1.3\ntls-version-max 1.2"}, "C227"),
        ({"more": "proto tcp\nfragment 1300"}, "C227"),
        ({"more": "verb 3 \\x"}, "C225"),
        ({"more": 'verb "3'}, "C225"),
        ({"more": "frobnicate"}, "C225"),
        ({"more": "ignore-unknown-option <ca>\n<ca> x"}, "C225"),
        ({"more": "# a comment\0"}, "C215"),
        ({"more": "#" + "x" * 254}, "C215"),
        ({"blocks": CA.replace("\n</ca>", "\0\n</ca>")}, "C215"),
        ({"more": "setenv GENERIC_CONFIG 1"}, "C229"),
        ({"check": "remote-cert-tls client"}, "C227"),
        ({"check": "verify-x509-name Zürich name"}, "C227"),
        ({"check": "peer-fingerprint 00:11"}, "C227"),
        ({"more": "<connection>\nca x\n</connection>"}, "C222"),
        ({"more": f"<connection>\n{CA}</connection>"}, "C225"),
        ({"more": "<remote>\n192.0.2.1\n</remote>"}, "C225"),
    ],
)
def test_what_is_refused(parts: dict[str, str], code: str) -> None:
    assert code in {found for _, found in refused(openvpn_text(**parts))}


def test_a_fingerprint_stands_for_a_ca() -> None:
    pairs = ":".join(["AB"] * 32)
    text = openvpn_text(
        blocks="", check=f"<peer-fingerprint>\n# of the server\n{pairs}\n</peer-fingerprint>"
    )
    check = server(text).profile.check
    assert check.fingerprints == ("ab" * 32,)
    assert not check.usage


def test_without_any_check_of_the_server_one_is_added() -> None:
    text = openvpn_text(check="")
    assert server(text).profile.check.usage
    assert [notice.code for notice in server(text).notices] == ["N110"]


@pytest.mark.parametrize(("more", "usage"), [("", True), ("verify-x509-name x name", False)])
def test_an_older_check_counts_only_alone(more: str, usage: bool) -> None:
    text = openvpn_text(check="ns-cert-type server\nremote-cert-ku a0", more=more)
    assert server(text).profile.check.usage is usage


def test_a_login_in_the_file() -> None:
    text = openvpn_text(login="<auth-user-pass>\nme\nse cret\n</auth-user-pass>")
    credentials = server(text).profile.credentials
    assert credentials is not None
    assert (credentials.username.reveal(), credentials.password.reveal()) == ("me", "se cret")
    assert "se cret" not in repr(server(text))
    assert refused(openvpn_text(login="<auth-user-pass>\nme\n</auth-user-pass>"))


def test_older_words_for_inline_blocks() -> None:
    text = openvpn_text(
        blocks=f"{CA}<tls-auth>\n{static_key()}</tls-auth>", more="ca [inline]\ntls-auth [inline] 1"
    )
    control = server(text).profile.control
    assert control is not None
    assert control.direction == 1


@pytest.mark.parametrize("change", ["crlf", "bom", "upper-blank", "no-newline", "dashes", "quotes"])
def test_spellings_of_the_same_profile(change: str) -> None:
    text = openvpn_text(more="auth SHA256 # why not\n; a comment\n#\xff\n\tverb\t3")
    changed = {
        "crlf": text.replace("\n", "\r\n"),
        "bom": "\ufeff" + text,
        "upper-blank": "\n\n \t\n" + text.replace("client", "\v\fclient"),
        "no-newline": text.rstrip("\n"),
        "dashes": text.replace("\nremote", "\n--remote").replace("<ca>", "--<ca>"),
        "quotes": text.replace("\nremote 192", "\n'remote' \"192").replace(" 1194", '" 1194'),
    }[change]
    assert server(changed) == server(text)


def test_utf_16_is_none() -> None:
    reading = read_openvpn(openvpn_text().encode("utf-16"), PATH)
    assert [each.code for each in reading.complaints(PATH)] == ["C201"]


def test_no_key_that_lost_its_block_is_shown() -> None:
    text = openvpn_text() + static_key()
    shown = " ".join(each.message for each in read(text).complaints(PATH))
    assert static_key().splitlines()[5] not in shown


def test_what_is_offered_by_default() -> None:
    assert server(openvpn_text()).profile.ciphers == AEAD


_LINES = st.lists(
    st.sampled_from(
        [
            *("comp-lzo no", "compress", "compress lz4", "fragment 1400", "tun-mtu 1300"),
            *("auth SHA256", "tls-version-min 1.3", "tls-groups X25519", "reneg-sec 3600"),
            *("verify-x509-name 'a \"b\"' name", "verify-x509-name 'x\\y'", "cipher AES-256-GCM"),
            *("data-ciphers AES-128-GCM:BF-CBC", "data-ciphers-fallback AES-128-GCM"),
            *("tls-cert-profile preferred", "tls-cipher TLS-DHE-RSA-WITH-AES-256-GCM-SHA384"),
            *(f"<tls-auth>\n{static_key()}</tls-auth>", f"<tls-crypt>\n{static_key()}</tls-crypt>"),
            *("key-direction 0", "peer-fingerprint " + ":".join(["0a"] * 32), IDENTITY, "verb 9"),
        ]
    ),
    unique=True,
)


@given(_LINES)
def test_any_profile_is_a_fixpoint(lines: list[str]) -> None:
    reading = read(openvpn_text(more="\n".join(lines)))
    for first in reading.servers:
        written = _render(first)
        (again,) = servers(
            f"client\nremote 192.0.2.10 1194 udp4\n{written[written.index('data-ciphers ') :]}"
        )
        assert again.profile == first.profile
        assert _render(again) == written
