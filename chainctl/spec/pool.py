"""The servers of a hop: from what its key `servers` says to profiles."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from chainctl.errors import Complaint, MendFile
from chainctl.spec.forms import Account, Source
from chainctl.spec.labels import combine
from chainctl.spec.logins import is_login_file
from chainctl.spec.model import Notice, ServerProfile, WireGuardProfile
from chainctl.spec.profile_file import load_profiles
from chainctl.spec.server_list import ListedServer, load_server_list
from chainctl.spec.words import quote
from chainctl.spec.yaml_text import PathInFile

LARGEST_POOL = 1000
"""Files a pattern may match: more is a pattern gone wrong."""


@dataclass
class Pool:
    profiles: list[ServerProfile] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    """About accounts: once, not with each of their servers."""
    flaws: list[tuple[PathInFile, str]] = field(default_factory=list)
    """Of the chain file: where below `servers`, taken as a list, and what is wrong."""
    listed: bool = False
    """Every server was named by itself, so that their order is somebody's choice."""
    complaints: list[Complaint] = field(default_factory=list)
    """Of profiles and lists."""

    @property
    def whole(self) -> bool:
        return not self.flaws and not self.complaints


def load_pool(sources: Iterable[Source], folder: Path) -> Pool:
    """Read all servers that `sources`, relative to `folder`, name. A file counts once."""
    sources = tuple(sources)
    reader = _Reader(folder)
    reader.pool.listed = all(
        isinstance(source, str) and not glob.has_magic(source) for source in sources
    )
    for number, source in enumerate(sources):
        if isinstance(source, Account):
            reader.add_account(source, number)
        else:
            for file in reader.find(source, (number,)):
                reader.add_file(file)
    return reader.pool


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = Pool()
        self.profiles: dict[Path, tuple[ServerProfile, ...]] = {}
        """What was read, nothing with complaints; a file may be named several times."""
        self.added: set[Path] = set()

    def find(self, pattern: str, at: PathInFile) -> list[Path]:
        try:
            return find_profiles(pattern, self.folder)
        except ValueError as error:
            self.pool.flaws.append((at, str(error)))
            return []

    def find_one(self, pattern: str, at: PathInFile) -> Path | None:
        found = self.find(pattern, at)
        if len(found) > 1:
            words = f"{quote(pattern)} matches {len(found)} files, one was expected"
            self.pool.flaws.append((at, words))
        return found[0] if len(found) == 1 else None

    def load(self, file: Path) -> tuple[ServerProfile, ...]:
        if file not in self.profiles:
            try:
                self.profiles[file] = load_profiles(file)
            except MendFile as error:
                self.profiles[file] = ()
                # A login that serves many profiles is complained about once.
                new = (each for each in error.complaints if each not in self.pool.complaints)
                self.pool.complaints.extend(new)
        return self.profiles[file]

    def load_account(self, file: Path, at: PathInFile) -> WireGuardProfile | None:
        first = next(iter(self.load(file)), None)
        if first is None or isinstance(first, WireGuardProfile):
            return first
        words = f"{quote(file.name)} is an OpenVPN profile; a list needs one of WireGuard"
        self.pool.flaws.append((at, words))
        return None

    def add_file(self, file: Path) -> None:
        if file not in self.added:
            self.pool.profiles.extend(self.load(file))
            self.added.add(file)

    def add_account(self, source: Account, number: int) -> None:
        """The server of the account's own profile, and those of its list.

        They all have the account's key and so one client address. That is fine, also for two
        tunnels side by side in one hop: addresses count only inside a tunnel, each tunnel has
        a routing table of its own, and the hop rewrites the source by tunnel.
        """
        file = self.find_one(source.account, (number, "account"))
        path = self.find_one(source.list, (number, "list"))
        account = self.load_account(file, (number, "account")) if file else None
        listed = self.load_list(path, (number, "list")) if path else None
        if file is None or path is None or account is None or listed is None:
            return
        if file not in self.added:
            self.pool.notices.extend(account.notices)
            if account.peer_public_key not in {server.public_key for server in listed}:
                self.pool.profiles.append(replace(account, notices=()))
                self.added.add(file)
        self.pool.profiles.extend(_with_account(account, server, path) for server in listed)

    def load_list(self, path: Path, at: PathInFile) -> tuple[ListedServer, ...] | None:
        if path in self.added:
            words = f"{quote(path.name)} is the list of another account of this hop already"
            self.pool.flaws.append((at, words))
            return None
        self.added.add(path)
        try:
            return load_server_list(path)
        except MendFile as error:
            self.pool.complaints.extend(error.complaints)
            return None


def _with_account(account: WireGuardProfile, server: ListedServer, file: Path) -> WireGuardProfile:
    said = replace(server.labels, operator=server.labels.operator or account.labels.operator)
    return replace(
        account,
        name=server.name,
        peer_public_key=server.public_key,
        endpoint=server.endpoint,
        file=file,
        notices=(),
        labels=combine(server.name, said),
    )


def find_profiles(pattern: str, folder: Path) -> list[Path]:
    """The profiles `pattern` names, sorted; ValueError with the reason when there are none."""
    try:
        os.fsencode(pattern)
    except UnicodeEncodeError:
        raise ValueError(f"{quote(pattern)} is not a possible path") from None
    path = folder / pattern
    if os.path.isdir(path):  # noqa: PTH112 (answers also for what is no possible path)
        meant = f"{pattern.rstrip('/')}/{_pattern_for(path)}"
        raise ValueError(f"{quote(pattern)} is a directory; did you mean {quote(meant)}?")
    if not glob.has_magic(pattern):
        if not os.path.lexists(path):
            raise ValueError(f"there is no file {quote(pattern)}; paths are relative to this file")
        return [path]
    # Not recursive (`**` is an ordinary `*`), and stopped at the limit: never a whole disk.
    matches = glob.iglob(os.path.join(glob.escape(str(folder)), pattern))  # noqa: PTH207
    profiles = (path for path in map(Path, matches) if not is_login_file(path))
    found = list(itertools.islice(profiles, LARGEST_POOL + 1))
    if len(found) > LARGEST_POOL:
        raise ValueError(f"{quote(pattern)} matches more than {LARGEST_POOL} files")
    if not found:
        raise ValueError(f"{quote(pattern)} matches no file; paths are relative to this file")
    return sorted(found)


def _pattern_for(folder: Path) -> str:
    files = folder.iterdir() if os.access(folder, os.R_OK) else ()
    kinds = {file.suffix for file in files} & {".conf", ".ovpn"}
    return "*" if len(kinds) == 2 else f"*{kinds.pop() if kinds else '.conf'}"
