"""A profile of either kind: its file says which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from chainctl.errors import Complaint, MendFile
from chainctl.spec.logins import is_login_file, load_login, login_file, with_login
from chainctl.spec.model import ServerProfile
from chainctl.spec.openvpn_profile import load_openvpn_profile, read_openvpn
from chainctl.spec.remarks import Remark, Verdict
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.wireguard_profile import LARGEST, load_wireguard_profile, read_wireguard
from chainctl.spec.words import quote
from chainctl.spec.yaml_text import Place

_SECTION = re.compile(rb"^[ \t]*\[(interface|peer)\]", re.IGNORECASE | re.MULTILINE)
_DIRECTIVE = re.compile(
    rb"^[ \t]*(--)?(client|pull|tls-client|remote[ \t]+\S+|dev[ \t]+(tun|tap)\S*|proto[ \t]+\S+"
    rb"|<(ca|cert|key|connection|tls-auth|tls-crypt|tls-crypt-v2)>)[ \t\r]*",
    re.MULTILINE,
)


def load_profiles(path: Path) -> tuple[ServerProfile, ...]:
    """The servers of a file, with the login that stands beside it.

    Raises MendFile with all complaints about it.
    """
    try:
        content = read_small_file(path, LARGEST)
    except UnreadableFile as error:
        raise MendFile.of([Complaint(str(path), 1, 1, "C201", str(error))]) from None
    if is_openvpn(path, content):
        return with_login(load_openvpn_profile(path))
    return (load_wireguard_profile(path),)


class Login(Enum):
    """Where username and password of a profile are."""

    NONE = "none"
    """It needs none."""
    PROFILE = "profile"
    FILE = "file"
    MISSING = "missing"


@dataclass(frozen=True)
class Explanation:
    """What a file says, line by line."""

    file: Path
    kind: str
    """`wireguard`, `openvpn`, `login`; "" when the file cannot be read."""
    remarks: tuple[Remark, ...]
    servers: tuple[ServerProfile, ...]
    """Empty when anything is refused."""
    login: Login = Login.NONE

    @property
    def usable(self) -> bool:
        return not self.complaints

    @property
    def complaints(self) -> list[Complaint]:
        return [
            Complaint(str(self.file), *remark.place, remark.code, remark.message)
            for remark in self.remarks
            if remark.verdict is Verdict.REFUSED
        ]


def explain(path: Path) -> Explanation:
    """What becomes of each line; never raises, and opens nothing but the profile and its login."""
    try:
        content = read_small_file(path, LARGEST)
    except UnreadableFile as error:
        remark = Remark(Place(1, 1), "", Verdict.REFUSED, "C201", str(error))
        return Explanation(path, "", (remark,), ())
    if is_login_file(path):
        return Explanation(path, "login", tuple(_explain_login(path)), ())
    if is_openvpn(path, content):
        return _explain_openvpn(path, content)
    profile, remarks = read_wireguard(content, path)
    return Explanation(path, "wireguard", remarks, (profile,) if profile else ())


def _explain_login(path: Path) -> Iterator[Remark]:
    try:
        load_login(path)
    except MendFile as error:
        yield Remark(Place(1, 1), "", Verdict.REFUSED, error.code, error.message)
        return
    for line, word in enumerate(("username", "password"), start=1):
        yield Remark(Place(line, 1), word, Verdict.USED, "", "")


def _explain_openvpn(path: Path, content: bytes) -> Explanation:
    reading = read_openvpn(content, path)
    remarks, servers, login = reading.remarks, reading.servers, Login.NONE
    if servers and servers[0].profile.login:
        login = Login.PROFILE if servers[0].profile.credentials else Login.MISSING
        file = login_file(servers[0])
        if file:
            login = Login.FILE
            try:
                load_login(file)
            except MendFile as error:
                words = f"{quote(file.name)}: {error.message}"
                remark = Remark(Place(1, 1), "auth-user-pass", Verdict.REFUSED, "C230", words)
                remarks, servers = (remark, *remarks), ()
    return Explanation(path, "openvpn", remarks, servers, login)


def is_openvpn(path: Path, content: bytes) -> bool:
    """By its ending, or what stands in it: OpenVPN's files are called `.conf` too."""
    if path.suffix.lower() == ".ovpn":
        return True
    return not _SECTION.search(content) and bool(_DIRECTIVE.search(content))
