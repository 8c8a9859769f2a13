"""Username and password of an OpenVPN profile, where it does not hold them itself.

They stand in a file beside it, a line each: `NAME.auth` for the profile `NAME.ovpn`, or
`auth.txt` for all profiles of a folder. A file that a profile names is never opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from chainctl.errors import Complaint, MendFile
from chainctl.model.openvpn import Credentials
from chainctl.spec.model import ChainSpec, Notice, OpenVpnServer
from chainctl.spec.openvpn_blocks import parse_login
from chainctl.spec.openvpn_text import Line
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.words import quote
from chainctl.spec.yaml_text import Place

LARGEST = 1024
"""Bytes."""
SHARED = "auth.txt"


def is_login_file(path: Path) -> bool:
    """By its name: such a file beside profiles is none of them."""
    return path.name == SHARED or path.suffix == ".auth"


def with_login(servers: tuple[OpenVpnServer, ...]) -> tuple[OpenVpnServer, ...]:
    """The servers of one profile with the login that stands beside it, if they need one.

    Raises MendFile C230 when it cannot be used.
    """
    path = login_file(servers[0])
    if path is None:
        return servers
    credentials = load_login(path)
    first, *others = (
        replace(server, profile=replace(server.profile, credentials=credentials))
        for server in servers
    )
    if path.stat().st_mode & 0o077:
        words = "username and password can be read by other users of this machine: chmod 600"
        notice = Notice(str(path), 1, 1, "N112", words)
        first = replace(first, notices=(*first.notices, notice))
    return (first, *others)


def login_file(server: OpenVpnServer) -> Path | None:
    """None also when the profile needs none."""
    if not server.profile.login or server.profile.credentials:
        return None
    beside = (server.file.with_suffix(".auth"), server.file.with_name(SHARED))
    return next((path for path in beside if os.path.lexists(path)), None)


def load_login(path: Path) -> Credentials:
    """Raises MendFile C230, which never repeats what stands in the file."""
    try:
        content = read_small_file(path, LARGEST)
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return parse_login([Line(number, line) for number, line in enumerate(lines, start=1)])
    except (UnreadableFile, ValueError) as error:
        raise MendFile.of([Complaint(str(path), 1, 1, "C230", str(error))]) from None


def check_logins(spec: ChainSpec) -> Iterator[Complaint]:
    """One complaint for each hop with servers that ask for a login nobody said."""
    for index, hop in enumerate(spec.hops):
        silent = [
            server
            for server in hop.pool
            if isinstance(server, OpenVpnServer)
            and server.profile.login
            and not server.profile.credentials
        ]
        if silent:
            more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
            words = (
                f"hop {hop.name}: {quote(silent[0].name)}{more} asks for username and password; "
                f"write them, a line each, into {quote(silent[0].file.with_name(SHARED))}"
            )
            place = spec.places.get(("hops", index, "servers"), Place(hop.line, 1))
            yield Complaint(str(spec.file), *place, "C231", words)
