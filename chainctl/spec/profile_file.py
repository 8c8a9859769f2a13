"""A profile of either kind: its file says which."""

from __future__ import annotations

import re
from pathlib import Path

from chainctl.errors import Complaint, MendFile
from chainctl.spec.logins import with_login
from chainctl.spec.model import ServerProfile
from chainctl.spec.openvpn_profile import load_openvpn_profile
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.wireguard_profile import LARGEST, load_wireguard_profile

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


def is_openvpn(path: Path, content: bytes) -> bool:
    """By its ending, or what stands in it: OpenVPN's files are called `.conf` too."""
    if path.suffix.lower() == ".ovpn":
        return True
    return not _SECTION.search(content) and bool(_DIRECTIVE.search(content))
