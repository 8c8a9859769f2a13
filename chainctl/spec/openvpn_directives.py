"""The directives of an OpenVPN profile that say something about the server.

Each function takes one into what has been read (`Said`). It returns what a person may want to
know beside that it is used, or raises: DroppedDirective, RefusedDirective, or ValueError for a
value that is none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from chainctl.model.openvpn import AEAD, Framing, KeyWrap, quoted
from chainctl.model.parts import TCP, UDP
from chainctl.spec.openvpn_blocks import (
    parse_certificates,
    parse_crypt_v2_key,
    parse_fingerprint,
    parse_fingerprints,
    parse_login,
    parse_private_key,
    parse_revocations,
    parse_static_key,
)
from chainctl.spec.openvpn_state import (
    DroppedDirective,
    RefusedDirective,
    Remote,
    Said,
    arguments,
    number,
    parse_block,
    refuse_file,
    shown,
)
from chainctl.spec.openvpn_text import Directive
from chainctl.spec.openvpn_words import names_of
from chainctl.spec.schema import refuse_special

_FRAMINGS = {framing.value: framing for framing in Framing}
_DIGESTS = names_of(
    "SHA1 SHA224 SHA256 SHA384 SHA512 SHA512-256 SHA3-256 SHA3-384 SHA3-512 BLAKE2B512"
    " BLAKE2S256 RSA-SHA1 RSA-SHA256 RSA-SHA384 RSA-SHA512"
)
_PROTOCOLS = {
    **dict.fromkeys(("udp", "udp4"), (UDP, False)),
    **dict.fromkeys(("tcp", "tcp4", "tcp-client", "tcp4-client"), (TCP, False)),
    "udp6": (UDP, True),
    **dict.fromkeys(("tcp6", "tcp6-client"), (TCP, True)),
}


# Servers


def _remote(said: Said, directive: Directive) -> str:
    arguments(directive, 1, 3)
    entry = said.entry if said.inside else None
    said.remotes.append(Remote(directive.place, directive.words, entry))
    return ""


def _proto(said: Said, directive: Directive) -> None:
    protocol, six = parse_protocol(arguments(directive, 1)[0])
    said.entry = replace(said.entry, protocol=protocol, six=six)


def _port(said: Said, directive: Directive) -> None:
    port = number(arguments(directive, 1)[0], 1, 65535)
    said.entry = replace(said.entry, port=port)


def _exit_notice(_said: Said, directive: Directive) -> None:
    """Done in any case."""
    arguments(directive, 0, 1)


def _fragment(said: Said, directive: Directive) -> None:
    size = number(arguments(directive, 1, 2)[0], 256, 65535)
    said.entry = replace(said.entry, fragment=size)


def _tun_mtu(said: Said, directive: Directive) -> None:
    size = number(arguments(directive, 1, 2)[0], 576, 9000)
    said.entry = replace(said.entry, tun_mtu=size)


def _wrapping(said: Said, directive: Directive) -> None:
    wrap = KeyWrap(directive.name)
    direction = None
    if directive.block is None:
        words = arguments(directive, 1, 2)
        refuse_file(directive)
        direction = _direction(words[1]) if len(words) > 1 else None
    other = said.entry.wrap
    if other not in (None, wrap):
        raise RefusedDirective("C211", f"{wrap.value} beside {other.value}: one of the two counts")
    if direction is not None:
        said.entry = replace(said.entry, direction=direction)
    if directive.block is not None:
        parse = parse_crypt_v2_key if wrap is KeyWrap.CRYPT_V2 else parse_static_key
        key = parse_block(directive, parse)
        said.entry = replace(said.entry, wrap=wrap, key=key)


def _key_direction(said: Said, directive: Directive) -> None:
    direction = _direction(arguments(directive, 1)[0])
    said.entry = replace(said.entry, direction=direction)


def _mode(_said: Said, directive: Directive) -> None:
    if arguments(directive, 1) != ("p2p",):
        raise RefusedDirective("C224", "mode belongs to a server, a hop is a client")


def _device(_said: Said, directive: Directive) -> None:
    if directive.words[:1] and directive.words[0].startswith(("tap", "null")):
        words = "a tunnel of layer 2 (`tap`); a hop carries IP packets, take a `tun` profile"
        raise RefusedDirective("C229", words)


# What the client and the server show each other


def _certificates(said: Said, directive: Directive) -> None:
    _keep(
        said, directive, {"ca": "ca", "cert": "chain", "extra-certs": "extra"}, parse_certificates
    )


def _private_key(said: Said, directive: Directive) -> None:
    _keep(said, directive, {"key": "key"}, parse_private_key)


def _revocations(said: Said, directive: Directive) -> None:
    _keep(said, directive, {"crl-verify": "crl"}, parse_revocations)


def _keep(
    said: Said, directive: Directive, names: Mapping[str, str], parse: Callable[[Any], Any]
) -> None:
    refuse_file(directive)
    if directive.block is not None:
        value = said.once(directive, parse_block(directive, parse))
        setattr(said, names[directive.name], value)


def _login(said: Said, directive: Directive) -> None:
    if directive.block is None and directive.words not in ((), ("[inline]",)):
        words = (
            "auth-user-pass reads a file; write it without one, and username and password, a "
            "line each, into `auth.txt` beside the profile"
        )
        raise RefusedDirective("C222", words)
    said.login = True
    if directive.block is not None:
        said.credentials = said.once(directive, parse_block(directive, parse_login))


def _remote_cert_tls(said: Said, directive: Directive) -> None:
    if arguments(directive, 1) != ("server",):
        raise ValueError("expected `server`: a hop talks to servers")
    said.usage = True


def _remote_cert_eku(said: Said, directive: Directive) -> None:
    if arguments(directive, 1)[0] not in (
        "TLS Web Server Authentication",
        "1.3.6.1.5.5.7.3.1",
    ):
        raise ValueError("expected `TLS Web Server Authentication`; write `remote-cert-tls server`")
    said.usage = True


def _older_check(_said: Said, directive: Directive) -> None:
    """Certificates with nothing newer in them exist: beside a name it is not made stricter."""
    if directive.name == "ns-cert-type" and arguments(directive, 1) != ("server",):
        raise ValueError("expected `server`: a hop talks to servers")
    words = "`remote-cert-tls server` instead, where nothing else checks the server"
    raise DroppedDirective("N110", words)


def _verify_name(said: Said, directive: Directive) -> None:
    name, *kind = arguments(directive, 1, 2)
    if not re.fullmatch("[ -~]{1,200}", name) or len(quoted(name)) > 220:
        raise ValueError("expected a name of at most 200 ASCII characters")
    if kind and kind[0] not in ("subject", "name", "name-prefix"):
        raise ValueError(f"expected subject, name or name-prefix, found {shown(kind[0])}")
    said.name = said.once(directive, (name, (kind or ["subject"])[0]))


def _fingerprint(said: Said, directive: Directive) -> None:
    if directive.block is not None:
        found = parse_block(directive, parse_fingerprints)
    else:
        found = (parse_fingerprint(arguments(directive, 1)[0]),)
    said.fingerprints = tuple(dict.fromkeys((*said.fingerprints, *found)))


# Ciphers


def _cipher(said: Said, directive: Directive) -> None:
    found = arguments(directive, 1)[0].upper()
    if found not in AEAD:
        words = f"{shown(found)} is not offered, only {', '.join(AEAD)}"
        raise DroppedDirective("N110", words)
    if directive.name == "data-ciphers-fallback":
        said.fallback = said.once(directive, found)


def _data_ciphers(said: Said, directive: Directive) -> str:
    words = arguments(directive, 1)[0].upper().split(":")
    found = tuple(dict.fromkeys(w.lstrip("?") for w in words if w.lstrip("?") in AEAD))
    if not found:
        raise DroppedDirective("N110", f"none of them authenticates; offered are {', '.join(AEAD)}")
    said.ciphers = said.once(directive, found, "data-ciphers")
    left = len(words) - len(found)
    return f"without {left} that do not authenticate" if left else ""


def _auth(said: Said, directive: Directive) -> None:
    found = arguments(directive, 1)[0]
    if found.upper() not in _DIGESTS:
        raise ValueError(f"expected a digest such as SHA256, found {shown(found)}")
    said.auth = said.once(directive, found.upper())


def _tls_version(said: Said, directive: Directive) -> None:
    version, *more = arguments(directive, 1, 2)
    if version not in ("1.0", "1.1", "1.2", "1.3") or more not in ([], ["or-highest"]):
        raise ValueError(f"expected 1.2 or 1.3, found {shown(version)}")
    least = directive.name == "tls-version-min"
    if version < "1.2":
        if least:
            raise DroppedDirective("N110", "raised to 1.2")
        raise ValueError("TLS below 1.2 is not spoken; remove the line if the server can more")
    said.tls["minimum" if least else "maximum"] = said.once(directive, version)


def _tls_words(said: Said, directive: Directive) -> None:
    value = arguments(directive, 1)[0]
    weak = re.search(r"SECLEVEL|NULL|anon|EXP|LOW|MD5|\bALL\b|insecure", value)
    if weak:
        raise DroppedDirective(
            "N110", f"{shown(weak[0])} would weaken TLS; the client's default holds"
        )
    if not re.fullmatch("[A-Za-z0-9_:+!-]{1,230}", value):
        raise ValueError(f"expected names with colons between them, found {shown(value)}")
    keys = {
        "tls-cipher": "ciphers",
        "tls-ciphersuites": "ciphersuites",
        "tls-groups": "groups",
        "tls-cert-profile": "profile",
    }
    if directive.name == "tls-cert-profile" and value not in ("legacy", "preferred", "suiteb"):
        raise ValueError(f"expected legacy, preferred or suiteb, found {shown(value)}")
    said.tls[keys[directive.name]] = said.once(directive, value)


def _compression(said: Said, directive: Directive) -> str | None:
    words = arguments(directive, 0, 1)
    found = " ".join((directive.name, *words)).replace("adaptive", "yes")
    found = {"comp-lzo": "comp-lzo yes", "compress stub": "compress"}.get(found, found)
    if found == "compress migrate":
        raise DroppedDirective("N105", "for servers")
    if found not in _FRAMINGS:
        raise ValueError(f"unknown: {shown(words[0])}")
    said.framing = _FRAMINGS[found]
    return "as the form of packets; nothing is compressed"


def _reneg(said: Said, directive: Directive) -> None:
    seconds = number(arguments(directive, 1, 2)[0], 0, 10**7)
    if 0 < seconds < 300:
        raise DroppedDirective("N105", "new keys every hour instead of so often")
    said.reneg = said.once(directive, seconds)


# Around the tunnel


def _dhcp_option(said: Said, directive: Directive) -> None:
    kind, *values = (*directive.words, "")
    if kind.upper() == "DNS6":
        raise DroppedDirective("N101", "chains carry IPv4 only")
    if kind.upper() != "DNS":
        raise DroppedDirective(
            "N103", "devices ask the resolver of the chain, nothing else is changed"
        )
    try:
        address = ipaddress.ip_address(values[0])
    except ValueError:
        raise ValueError(f"expected an address, found {shown(values[0])}") from None
    if not isinstance(address, IPv4Address):
        raise DroppedDirective("N101", "chains carry IPv4 only")
    try:
        refuse_special(address)
    except ValueError as error:
        raise DroppedDirective("N103", f"the resolver is not asked: {error}") from None
    said.dns.append(address)


def _setenv(said: Said, directive: Directive) -> None:
    name = directive.words[0] if directive.words else ""
    if name == "REMOTE_RANDOM_HOSTNAME":
        words = "puts random letters before the server's name, which could not be pinned"
        raise RefusedDirective("C223", f"setenv {name} {words}; remove the line")
    if name == "GENERIC_CONFIG":
        raise RefusedDirective("C229", "a template of the provider; take the profile of one server")
    if name == "FORWARD_COMPATIBLE":
        said.passed_over.add("*")
    raise DroppedDirective("N109", "the server is told nothing about this machine")


def _ignore_unknown(said: Said, directive: Directive) -> None:
    said.passed_over.update(directive.words)


def _direction(word: str) -> int:
    if word not in ("0", "1"):
        raise ValueError(f"expected the direction 0 or 1, found {shown(word)}")
    return int(word)


def parse_protocol(word: str) -> tuple[int, bool]:
    if word not in _PROTOCOLS:
        raise ValueError(f"expected udp or tcp, found {shown(word)}")
    return _PROTOCOLS[word]


HANDLERS: Mapping[str, Callable[[Said, Directive], str | None]] = {
    "remote": _remote,
    "proto": _proto,
    "port": _port,
    "rport": _port,
    "dev": _device,
    "dev-type": _device,
    "mode": _mode,
    "ca": _certificates,
    "cert": _certificates,
    "extra-certs": _certificates,
    "key": _private_key,
    "crl-verify": _revocations,
    "tls-auth": _wrapping,
    "tls-crypt": _wrapping,
    "tls-crypt-v2": _wrapping,
    "key-direction": _key_direction,
    "auth-user-pass": _login,
    "cipher": _cipher,
    "data-ciphers": _data_ciphers,
    "ncp-ciphers": _data_ciphers,
    "data-ciphers-fallback": _cipher,
    "auth": _auth,
    "tls-version-min": _tls_version,
    "tls-version-max": _tls_version,
    "tls-cipher": _tls_words,
    "tls-ciphersuites": _tls_words,
    "tls-groups": _tls_words,
    "tls-cert-profile": _tls_words,
    "remote-cert-tls": _remote_cert_tls,
    "remote-cert-eku": _remote_cert_eku,
    "remote-cert-ku": _older_check,
    "ns-cert-type": _older_check,
    "verify-x509-name": _verify_name,
    "peer-fingerprint": _fingerprint,
    "comp-lzo": _compression,
    "compress": _compression,
    "fragment": _fragment,
    "tun-mtu": _tun_mtu,
    "reneg-sec": _reneg,
    "explicit-exit-notify": _exit_notice,
    "dhcp-option": _dhcp_option,
    "setenv": _setenv,
    "ignore-unknown-option": _ignore_unknown,
}
BLOCKS = names_of(
    "ca cert extra-certs key crl-verify tls-auth tls-crypt tls-crypt-v2 auth-user-pass"
    " peer-fingerprint connection"
)
IN_CONNECTION = names_of(
    "remote proto port rport tls-auth tls-crypt tls-crypt-v2 key-direction fragment tun-mtu"
    " explicit-exit-notify"
)
