"""A WireGuard profile as providers hand it out: a wg-quick(8) file, read into typed values.

What chainctl does itself (routes, marks, IPv6, search domains) is dropped with a notice; what
would run a program, or would make the tunnel another one than the file describes, is refused.
The text never reaches a VPN client: what does is written anew from the values.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface
from pathlib import Path
from typing import TypeVar

from chainctl.errors import Complaint, MendFile
from chainctl.model.secret import Secret
from chainctl.spec.labels import combine, read_comments
from chainctl.spec.model import Endpoint, Notice, WireGuardProfile
from chainctl.spec.remarks import Remark, Verdict, capped
from chainctl.spec.schema import refuse_special
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.wgquick import Section, Setting, parse_wgquick, show
from chainctl.spec.words import nearest
from chainctl.spec.yaml_text import Place

LARGEST = 64 * 1024
"""Bytes."""

_INTERFACE_KEYS = "PrivateKey Address DNS MTU ListenPort Table FwMark SaveConfig"
_PEER_KEYS = "PublicKey PresharedKey AllowedIPs Endpoint PersistentKeepalive"
_INTERFACE = {key.lower(): key for key in _INTERFACE_KEYS.split()}
_PEER = {key.lower(): key for key in _PEER_KEYS.split()}
_LISTS = {"address", "dns", "allowedips"}
_HOOKS = {"preup": "PreUp", "postup": "PostUp", "predown": "PreDown", "postdown": "PostDown"}
_AMNEZIA = re.compile(r"jc|jmin|jmax|[sh][1-4]|i[1-5]|j[1-3]|itime")
_EVERYTHING = IPv4Network("0.0.0.0/0")
_NO_KEY = "A" * 43 + "="
_T = TypeVar("_T")


def load_wireguard_profile(path: Path) -> WireGuardProfile:
    """Read a profile; raises MendFile with all complaints about it."""
    try:
        content = read_small_file(path, LARGEST)
    except UnreadableFile as error:
        raise MendFile.of([Complaint(str(path), 1, 1, "C201", str(error))]) from None
    profile, remarks = read_wireguard(content, path)
    refused = [remark for remark in remarks if remark.verdict is Verdict.REFUSED]
    if refused or profile is None:
        raise MendFile.of(
            [Complaint(str(path), *each.place, each.code, each.message) for each in refused]
        )
    return profile


def read_wireguard(
    content: bytes, path: Path
) -> tuple[WireGuardProfile | None, tuple[Remark, ...]]:
    """The profile, None when anything is refused, and what becomes of each of its lines."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        words = "is UTF-16 text; save it as UTF-8"
        return None, (Remark(Place(1, 1), "", Verdict.REFUSED, "C201", words),)
    # Comments may be in any encoding; elsewhere only ASCII is let through.
    text = content.decode("utf-8-sig", errors="replace")
    reader = _Reader(text, path)
    profile = reader.read()
    return None if reader.complaints else profile, capped(_remarks(reader, text))


def _remarks(reader: _Reader, text: str) -> Iterator[Remark]:
    sections, _ = parse_wgquick(text)
    words = {
        place.line: setting.written
        for section in sections
        for setting in section.settings.values()
        for place in setting.key_places
    }
    shown = {
        line: word if word.lower() in _INTERFACE | _PEER | _HOOKS else ""
        for line, word in words.items()
    }
    gone = set()
    for complaint in reader.complaints:
        place = Place(complaint.line, complaint.column)
        gone.add(complaint.line)
        word = shown.get(complaint.line, "")
        yield Remark(place, word, Verdict.REFUSED, complaint.code, complaint.message)
    for notice in reader.notices:
        place = Place(notice.line, notice.column)
        if notice.code == "N105":
            gone.add(notice.line)
        word = shown.get(notice.line, "")
        yield Remark(place, word, Verdict.DROPPED, notice.code, notice.message)
    for section in sections:
        for setting in section.settings.values():
            for place in setting.key_places:
                if place.line not in gone:
                    yield Remark(place, shown[place.line], Verdict.USED, "", "")


def parse_wireguard_profile(text: str, path: Path) -> WireGuardProfile:
    """As `load_wireguard_profile`, with the text at hand."""
    reader = _Reader(text, path)
    profile = reader.read()
    if reader.complaints or profile is None:
        raise MendFile.of(reader.complaints)
    return profile


class _Reader:
    def __init__(self, text: str, path: Path) -> None:
        self.text = text
        self.path = path
        self.complaints: list[Complaint] = []
        self.notices: list[Notice] = []
        self.six: list[tuple[str, Place]] = []
        """IPv6 parts, for one notice about all of them."""

    def read(self) -> WireGuardProfile | None:
        if not self.path.stem.isprintable():
            self.complain(Place(1, 1), "C201", "the file's name contains unprintable characters")
        sections, flaws = parse_wgquick(self.text)
        for flaw in flaws:
            self.complain(*flaw)
        interface = self.only_interface(sections)
        peer = self.only_peer(sections)
        for section in sections:
            self.check_keys(section)
        if interface is None or peer is None:
            return None
        return self.profile(interface, peer)

    def complain(self, place: Place, code: str, message: str) -> None:
        self.complaints.append(Complaint(str(self.path), *place, code, message))

    def notice(self, place: Place, code: str, message: str) -> None:
        self.notices.append(Notice(str(self.path), *place, code, message))

    # Sections and keys

    def only_interface(self, sections: Sequence[Section]) -> Section | None:
        found = [section for section in sections if section.name == "interface"]
        if not found:
            self.complain(Place(1, 1), "C202", "not a WireGuard profile: no section [Interface]")
            return None
        for section in found[1:]:
            words = f"a second [Interface], the first begins in line {found[0].place.line}"
            self.complain(section.place, "C211", words)
        return found[0]

    def only_peer(self, sections: Sequence[Section]) -> Section | None:
        """One server a profile: which of two a packet would go to is not ours to guess."""
        found = [section for section in sections if section.name == "peer"]
        if not found:
            self.complain(Place(1, 1), "C207", "the section [Peer] is missing")
            return None
        lines: dict[str, int] = {}
        for section in found:
            setting = section.settings.get("publickey")
            key = setting.entries[0][0] if setting else ""
            if key in lines:
                words = f"the peer of line {lines[key]} has the same PublicKey"
                self.complain(section.place, "C205", words)
            elif lines:
                words = "a second [Peer]: a hop has one server; put the other into its own file"
                self.complain(section.place, "C206", words)
            lines.setdefault(key, section.place.line)
        return found[0]

    def check_keys(self, section: Section) -> None:
        known, other = (_INTERFACE, _PEER) if section.name == "interface" else (_PEER, _INTERFACE)
        for setting in section.settings.values():
            key, place = setting.key, setting.key_places[0]
            if key in _HOOKS:
                words = f"{_HOOKS[key]} runs a program on this machine; remove the line"
                for at in setting.key_places:
                    self.complain(at, "C203", words)
            elif _AMNEZIA.fullmatch(key):
                words = f"{setting.written} is AmneziaWG's: hops of that kind are not built yet"
                self.complain(place, "C214", words)
            elif key in other:
                where = "[Peer]" if section.name == "interface" else "[Interface]"
                self.complain(place, "C212", f"{other[key]} belongs in the section {where}")
            elif key not in known:
                meant = nearest(setting.written, known.values())
                self.complain(place, "C212", f"unknown key: {show(setting.written)}.{meant}")
            elif len(setting.key_places) > 1 and key not in _LISTS:
                words = f"{known[key]} stands here a second time, first in line {place.line}"
                self.complain(setting.key_places[1], "C211", words)

    # Values

    def profile(self, interface: Section, peer: Section) -> WireGuardProfile | None:
        private = self.required(interface, "privatekey", _secret_key, "C204")
        public = self.required(peer, "publickey", parse_key, "C204")
        preshared = self.optional(peer, "presharedkey", _preshared_key, "C204")
        endpoint = self.required(peer, "endpoint", parse_endpoint, "C208")
        addresses = self.addresses(interface)
        dns = self.dns(interface)
        mtu = self.optional(interface, "mtu", lambda word: _number(word, 576, 65535), "C210")
        keepalive = self.optional(peer, "persistentkeepalive", _keepalive, "C210")
        self.allowed(peer)
        self.without_effect(interface)
        said, flaws = read_comments(self.text)
        for flaw in flaws:
            self.notice(*flaw)
        if self.six:
            parts = ", ".join(part for part, _ in self.six)
            words = f"IPv6 is not used ({parts}): chains carry IPv4 only"
            self.notice(self.six[0][1], "N101", words)
        if self.complaints or private is None or public is None or endpoint is None:
            return None
        return WireGuardProfile(
            name=self.path.stem,
            private_key=private,
            addresses=addresses,
            dns=dns,
            mtu=mtu,
            peer_public_key=public,
            preshared=preshared,
            endpoint=endpoint,
            keepalive=keepalive or None,
            file=self.path,
            notices=tuple(self.notices),
            labels=combine(self.path.stem, said),
        )

    def required(
        self, section: Section, key: str, parse: Callable[[str], _T], code: str
    ) -> _T | None:
        if key not in section.settings:
            self.missing(section, key)
            return None
        return self.optional(section, key, parse, code)

    def missing(self, section: Section, key: str) -> None:
        name = (_INTERFACE | _PEER)[key]
        self.complain(section.place, "C207", f"{name} is missing in this section")

    def optional(
        self, section: Section, key: str, parse: Callable[[str], _T], code: str
    ) -> _T | None:
        setting = section.settings.get(key)
        if setting is None:
            return None
        word, place = setting.entries[0]
        if len(setting.key_places) == 1:
            word = ",".join(word for word, _ in setting.entries)
        try:
            return parse(word)
        except ValueError as error:
            self.complain(place, code, f"{(_INTERFACE | _PEER)[key]}: {error}")
            return None

    def entries(self, setting: Setting) -> Iterator[tuple[str, Place]]:
        """Those of a list; an empty one is complained about."""
        for word, place in setting.entries:
            if word:
                yield word, place
            else:
                self.complain(place, "C210", f"{setting.written}: an entry is empty")

    def addresses(self, interface: Section) -> tuple[IPv4Interface, ...]:
        setting = interface.settings.get("address")
        if setting is None:
            self.missing(interface, "address")
            return ()
        found = []
        fine = True
        for word, place in self.entries(setting):
            try:
                address = _interface_address(word)
            except ValueError as error:
                self.complain(place, "C210", f"Address: {error}")
                fine = False
                continue
            if isinstance(address, IPv4Interface):
                found.append(address)
            else:
                self.six.append((str(address.ip), place))
        if fine and not found:
            words = "Address: no IPv4 address; chains carry IPv4 only"
            self.complain(setting.entries[0][1], "C210", words)
        return tuple(dict.fromkeys(found))

    def dns(self, interface: Section) -> tuple[IPv4Address, ...]:
        setting = interface.settings.get("dns")
        found = []
        for word, place in self.entries(setting) if setting else ():
            try:
                address = ipaddress.ip_address(word)
            except ValueError:
                if _is_host_name(word):
                    self.notice(place, "N103", f"the search domain {show(word)} is not used")
                else:
                    words = f"DNS: expected an address, found {show(word)}"
                    self.complain(place, "C210", words)
                continue
            if not isinstance(address, IPv4Address):
                self.six.append((str(address), place))
                continue
            try:
                refuse_special(address)
            except ValueError as error:
                self.notice(place, "N103", f"the resolver is not asked: {error}")
                continue
            found.append(address)
        return tuple(dict.fromkeys(found))

    def allowed(self, peer: Section) -> None:
        """The tunnel has to carry everything: a hop that carries less is no hop."""
        setting = peer.settings.get("allowedips")
        if setting is None:
            self.missing(peer, "allowedips")
            return
        networks = []
        for word, place in self.entries(setting):
            try:
                network = ipaddress.ip_network(word, strict=False)
            except ValueError:
                words = f"AllowedIPs: expected a network such as `0.0.0.0/0`, found {show(word)}"
                self.complain(place, "C209", words)
                return
            if isinstance(network, IPv4Network):
                networks.append(network)
            else:
                self.six.append((str(network), place))
        if list(ipaddress.collapse_addresses(networks)) != [_EVERYTHING]:
            words = "AllowedIPs: less than `0.0.0.0/0`; a hop has to carry everything"
            self.complain(setting.entries[0][1], "C209", words)
        elif _EVERYTHING not in networks:
            words = "AllowedIPs covers everything in parts; used as 0.0.0.0/0"
            self.notice(setting.entries[0][1], "N102", words)

    def without_effect(self, interface: Section) -> None:
        reasons = {
            "listenport": "each tunnel gets a source port of its own",
            "table": "chainctl makes the routes",
            "fwmark": "chainctl makes the routes",
            "saveconfig": "chainctl never writes to a profile",
        }
        for key, reason in reasons.items():
            if key in interface.settings:
                setting = interface.settings[key]
                words = f"{_INTERFACE[key]} is not used: {reason}"
                self.notice(setting.key_places[0], "N105", words)


def parse_key(word: str) -> str:
    """32 bytes in base64, canonical, as wg(8) wants them. The message never shows the key."""
    if re.fullmatch(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", word):
        if word == _NO_KEY:
            raise ValueError("a key of zeros is none")
        return word
    if not word:
        raise ValueError("nothing stands here, a key was expected")
    if re.search(r"[^A-Za-z0-9+/=]", word):
        raise ValueError("not base64; a key is 44 characters of A-Z a-z 0-9 + / =")
    if len(word) != 44:
        raise ValueError(f"{len(word)} characters; a key is 44, for 32 bytes in base64")
    raise ValueError("not 32 bytes in base64; was the end of the key changed?")


def _secret_key(word: str) -> Secret:
    return Secret(parse_key(word))


def _preshared_key(word: str) -> Secret | None:
    """None for a key of zeros, which to wg(8) means that there is none."""
    return None if word == _NO_KEY else _secret_key(word)


def parse_endpoint(word: str) -> Endpoint:
    """`address:port` or `name:port`; ValueError with the reason."""
    if word.startswith("["):
        raise ValueError("an IPv6 server; chains are built over IPv4 only")
    host, colon, port = word.rpartition(":")
    if not colon or ":" in host:
        raise ValueError(f"expected `address:port`, found {show(word)}")
    number = _number(port, 1, 65535)
    try:
        address = IPv4Address(host)
    except ValueError:
        # A last label of digits would be read as an IPv4 address by resolvers (`10.1`).
        if not _is_host_name(host) or host.rstrip(".").rpartition(".")[2].isdigit():
            expected = "expected an IPv4 address or a name before the port"
            raise ValueError(f"{expected}, found {show(host)}") from None
        return Endpoint(host.rstrip(".").lower(), number)
    refuse_special(address)
    return Endpoint(address, number)


def _is_host_name(word: str) -> bool:
    label = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
    return len(word) < 254 and bool(re.fullmatch(rf"{label}(\.{label})*\.?", word, re.IGNORECASE))


def _interface_address(word: str) -> IPv4Interface | IPv6Interface:
    try:
        address = ipaddress.ip_interface(word)
    except ValueError:
        raise ValueError(
            f"expected an address such as `10.64.0.2/32`, found {show(word)}"
        ) from None
    if isinstance(address, IPv4Interface):
        refuse_special(address.ip)
    return address


def _number(word: str, low: int, high: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", word) or not low <= int(word) <= high:
        raise ValueError(f"expected a number from {low} to {high}, found {show(word)}")
    return int(word)


def _keepalive(word: str) -> int:
    return 0 if word.lower() == "off" else _number(word, 0, 65535)
