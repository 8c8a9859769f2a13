"""An OpenVPN profile as providers hand it out, read into typed values, line by line.

Every directive gets a remark: used, dropped with the reason, or refused with the way out. The
text never reaches a VPN client, and no file that it names is opened: what does reach one is
written anew from the values (`chainctl.model.openvpn`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from chainctl.errors import Complaint, MendFile
from chainctl.model.openvpn import (
    ControlKey,
    Identity,
    KeyWrap,
    OpenVpnProfile,
    ServerCheck,
    TlsOptions,
)
from chainctl.model.parts import TCP
from chainctl.spec.labels import combine, read_comments
from chainctl.spec.model import Endpoint, Notice, OpenVpnServer
from chainctl.spec.openvpn_directives import BLOCKS, HANDLERS, IN_CONNECTION, parse_protocol
from chainctl.spec.openvpn_state import (
    DroppedDirective,
    Entry,
    RefusedDirective,
    Said,
    is_word,
    number,
    shown,
)
from chainctl.spec.openvpn_text import Directive, parse_lines, parse_openvpn
from chainctl.spec.openvpn_words import SAME, TABLE, Dropped, Refused, is_resolver_script
from chainctl.spec.remarks import Remark, Verdict, capped
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.wireguard_profile import parse_endpoint
from chainctl.spec.words import nearest
from chainctl.spec.yaml_text import Flaw, Place

LARGEST = 64 * 1024
"""Bytes."""
MOST_SERVERS = 64
"""In one file; the client takes no more."""
_USEFUL = [*HANDLERS, *SAME, *(name for name, kind in TABLE.items() if isinstance(kind, Dropped))]


@dataclass(frozen=True)
class OpenVpnReading:
    """What a file says, and what becomes of each of its lines."""

    servers: tuple[OpenVpnServer, ...]
    """Empty when anything is refused."""
    remarks: tuple[Remark, ...]

    def complaints(self, path: Path) -> list[Complaint]:
        return [
            Complaint(str(path), *remark.place, remark.code, remark.message)
            for remark in self.remarks
            if remark.verdict is Verdict.REFUSED
        ]


def load_openvpn_profile(path: Path) -> tuple[OpenVpnServer, ...]:
    """The servers of a file; raises MendFile with all complaints about it."""
    try:
        content = read_small_file(path, LARGEST)
    except UnreadableFile as error:
        raise MendFile.of([Complaint(str(path), 1, 1, "C201", str(error))]) from None
    reading = read_openvpn(content, path)
    complaints = reading.complaints(path)
    if complaints:
        raise MendFile.of(complaints)
    return reading.servers


def read_openvpn(content: bytes, path: Path) -> OpenVpnReading:
    """Never raises; `path` is only for names."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        words = "is UTF-16 text; save it as UTF-8"
        return OpenVpnReading((), (Remark(Place(1, 1), "", Verdict.REFUSED, "C201", words),))
    reader = _Reader(path)
    directives, flaws = parse_openvpn(content)
    reader.take(directives, flaws)
    servers = reader.servers(content)
    return OpenVpnReading(servers, capped(reader.remarks))


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.remarks: list[Remark] = []
        self.said = Said()

    def take(self, directives: Sequence[Directive], flaws: Sequence[Flaw]) -> None:
        for flaw in flaws:
            self.remark(flaw.place, "", Verdict.REFUSED, flaw.code, flaw.message)
        for directive in directives:
            self.judge(directive)

    def remark(self, place: Place, word: str, verdict: Verdict, code: str, message: str) -> None:
        self.remarks.append(Remark(place, word, verdict, code, message))

    def judge(self, directive: Directive) -> None:
        name, place = directive.name, directive.place
        word = name if is_word(name) else ""
        try:
            message = self.use(directive)
        except RefusedDirective as error:
            self.remark(place, word, Verdict.REFUSED, error.code, str(error))
        except ValueError as error:
            self.remark(place, word, Verdict.REFUSED, "C227", f"{name}: {error}")
        except DroppedDirective as drop:
            self.remark(place, word, Verdict.DROPPED, drop.code, str(drop))
        else:
            self.remark(place, word, Verdict.USED, "", message)

    def use(self, directive: Directive) -> str:
        name, words = directive.name, directive.words
        kind = TABLE.get(name)
        if is_resolver_script(name, words) and not directive.flaw:
            raise DroppedDirective("N108", "the resolver of this machine is not touched")
        if isinstance(kind, Refused):
            raise RefusedDirective(kind.code, f"{name} {kind.reason}")
        if directive.flaw:
            if name in HANDLERS:
                with suppress(ValueError, DroppedDirective):  # That it names a file says more.
                    HANDLERS[name](self.said, directive)
            raise RefusedDirective(directive.flaw.code, directive.flaw.message)
        if directive.block is not None and name not in BLOCKS:
            raise RefusedDirective("C225", f"{shown(name)} is no inline block")
        if kind:
            raise DroppedDirective(kind.code, kind.reason)
        if name in SAME:
            return ""
        if name == "connection":
            self.connection(directive)
            return ""
        if name not in HANDLERS:
            raise self.unknown(directive)
        message = HANDLERS[name](self.said, directive) or ""
        if self.said.inside and name not in IN_CONNECTION:
            raise RefusedDirective("C225", f"{name} has no place in `<connection>`; move it out")
        return message

    def unknown(self, directive: Directive) -> Exception:
        name = directive.name
        if is_word(name) and (directive.opt or self.said.passed_over & {name, "*"}):
            return DroppedDirective("N111", "unknown; the file says to pass over it")
        meant = nearest(name, _USEFUL) if is_word(name) else ""
        return RefusedDirective("C225", f"unknown directive: {shown(name)}.{meant}")

    def connection(self, directive: Directive) -> None:
        if directive.block is None:
            raise RefusedDirective("C225", "connection is an inline block")
        outer, before = self.said.entry, len(self.said.remotes)
        self.said.inside = True
        self.take(*parse_lines(directive.block))
        # As the client does it: what stands behind `remote` in the block counts too.
        self.said.remotes[before:] = [
            replace(r, entry=self.said.entry) for r in self.said.remotes[before:]
        ]
        self.said.inside, self.said.entry = False, outer

    def servers(self, content: bytes) -> tuple[OpenVpnServer, ...]:
        candidates = self.candidates()
        self.check_whole(candidates)
        if any(remark.verdict is Verdict.REFUSED for remark in self.remarks):
            return ()
        labels, flaws = read_comments(content.decode("utf-8-sig", errors="replace"))
        for flaw in flaws:
            self.remark(flaw.place, "", Verdict.DROPPED, flaw.code, flaw.message)
        notices = tuple(self.notices())
        said = self.said
        stem = self.path.stem
        several = len(candidates) > 1
        return tuple(
            OpenVpnServer(
                name=f"{stem}#{number}" if several else stem,
                endpoint=endpoint,
                protocol=entry.protocol,
                profile=self.profile(entry),
                dns=tuple(dict.fromkeys(said.dns)),
                mtu=entry.tun_mtu if entry.tun_mtu < 1500 else None,
                file=self.path,
                notices=notices if number == 1 else (),
                labels=combine(stem, labels),
            )
            for number, (endpoint, entry) in enumerate(candidates, start=1)
        )

    def candidates(self) -> list[tuple[Endpoint, Entry]]:
        """The servers in the order of the file, each once."""
        blocks = any(remote.entry for remote in self.said.remotes)
        found: dict[tuple[Endpoint, int], Entry] = {}
        for remote in self.said.remotes:
            try:
                if blocks and remote.entry is None:
                    raise DroppedDirective(
                        "N105", "the client goes by the `<connection>` blocks alone"
                    )
                entry = remote.entry or self.said.entry
                endpoint, entry = _endpoint(remote.words, entry)
                self.check_entry(entry)
            except DroppedDirective as drop:
                self.correct(remote.place, Verdict.DROPPED, drop.code, str(drop))
            except RefusedDirective as error:
                self.correct(remote.place, Verdict.REFUSED, error.code, str(error))
            except ValueError as error:
                self.correct(remote.place, Verdict.REFUSED, "C208", f"remote: {error}")
            else:
                found.setdefault((endpoint, entry.protocol), entry)
        return [(endpoint, entry) for (endpoint, _), entry in found.items()]

    def correct(self, place: Place, verdict: Verdict, code: str, message: str) -> None:
        """A `remote` is judged when all that counts for it has been read."""
        self.remarks = [remark for remark in self.remarks if remark.place != place]
        self.remark(place, "remote", verdict, code, message)

    def check_entry(self, entry: Entry) -> None:
        if entry.fragment and entry.protocol == TCP:
            raise RefusedDirective("C227", "fragment is for UDP; this server is asked over TCP")
        if entry.direction is not None and entry.wrap is None and not self.refused():
            raise RefusedDirective(
                "C228", "a key direction, and no key it belongs to (`<tls-auth>`)"
            )

    def refused(self) -> bool:
        return any(remark.verdict is Verdict.REFUSED for remark in self.remarks)

    def check_whole(self, candidates: Sequence[tuple[Endpoint, Entry]]) -> None:
        said = self.said
        if not self.path.stem.isprintable():
            self.missing("C201", "the file's name contains unprintable characters")
        if not self.said.remotes:
            self.missing("C228", "no server: expected a line such as `remote 203.0.113.7 1194 udp`")
        elif not candidates and not self.refused():
            self.missing("C228", "no server with an IPv4 address; chains carry IPv4 only")
        if len(candidates) > MOST_SERVERS:
            self.missing("C227", f"more than {MOST_SERVERS} servers in one file")
        words = {remark.word for remark in self.remarks if remark.verdict is Verdict.REFUSED}
        if not said.ca and not said.fingerprints and not words & {"ca", "peer-fingerprint"}:
            words_ = "nothing tells the server from anybody else: expected a CA in `<ca>`"
            self.missing("C228", f"{words_} or peer-fingerprint")
        if bool(said.chain) != bool(said.key) and not words & {"cert", "key"}:
            lacking = "key" if said.chain else "cert"
            self.missing(
                "C228", f"a client certificate needs `<cert>` and `<key>`; no `<{lacking}>`"
            )
        if not said.chain and not said.login and not words & {"cert", "key", "auth-user-pass"}:
            words_ = "nothing tells the server who you are: expected `<cert>` and `<key>`"
            self.missing("C228", f"{words_}, or `auth-user-pass`")
        if said.tls.get("maximum", "9") < said.tls.get("minimum", "1.2"):
            self.missing("C227", "tls-version-max is below tls-version-min")
        if not (said.usage or said.name[0] or said.fingerprints or self.refused()):
            said.usage = True
            words_ = (
                "the profile checks nothing but the CA; chainctl asks for `remote-cert-tls server`"
            )
            self.remark(Place(1, 1), "", Verdict.DROPPED, "N110", words_)

    def missing(self, code: str, message: str) -> None:
        self.remark(Place(1, 1), "", Verdict.REFUSED, code, message)

    def profile(self, entry: Entry) -> OpenVpnProfile:
        said = self.said
        control = None
        if entry.wrap and entry.key:
            direction = entry.direction if entry.wrap is KeyWrap.AUTH else None
            control = ControlKey(entry.wrap, entry.key, direction)
        identity = Identity((*said.chain, *said.extra), said.key) if said.key else None
        return OpenVpnProfile(
            ca=said.ca,
            check=ServerCheck(said.usage, *said.name, said.fingerprints),
            identity=identity,
            login=said.login,
            credentials=said.credentials,
            control=control,
            crl=said.crl,
            ciphers=said.ciphers,
            fallback=said.fallback,
            auth=said.auth,
            tls=TlsOptions(**said.tls),
            framing=said.framing,
            fragment=entry.fragment,
            tun_mtu=entry.tun_mtu,
            reneg=said.reneg,
        )

    def notices(self) -> list[Notice]:
        """One for each code: profiles have a dozen lines that need no word each."""
        found: dict[str, list[Remark]] = {}
        for remark in self.remarks:
            if remark.verdict is Verdict.DROPPED:
                found.setdefault(remark.code, []).append(remark)
        notices = []
        for code, remarks in found.items():
            words = tuple(dict.fromkeys(remark.word for remark in remarks if remark.word))
            first = remarks[0]
            if len(words) < 2:
                prefix = f"{first.word} is not used: " if first.word else ""
                message = f"{prefix}{first.message}"
            else:
                more = f" and {len(words) - 3} more" if len(words) > 3 else ""
                message = f"{', '.join(words[:3])}{more} are not used"
            notices.append(Notice(str(self.path), *first.place, code, message))
        return notices


def _endpoint(words: Sequence[str], entry: Entry) -> tuple[Endpoint, Entry]:
    """Raises ValueError, or DroppedDirective for what is IPv6."""
    host, *more = words
    if more:
        entry = replace(entry, port=number(more[0], 1, 65535))
    if len(more) > 1:
        protocol, six = parse_protocol(more[1])
        entry = replace(entry, protocol=protocol, six=six)
    if entry.six or ":" in host:
        raise DroppedDirective("N101", "a server asked over IPv6; chains carry IPv4 only")
    return parse_endpoint(f"{host}:{entry.port}"), entry
