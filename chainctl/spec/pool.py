"""The servers of a hop: from the paths and patterns of the chain file to profiles."""

from __future__ import annotations

import glob
import itertools
import os
from pathlib import Path
from typing import NamedTuple

from chainctl.errors import Complaint, MendFile
from chainctl.spec.model import ServerProfile
from chainctl.spec.wireguard_profile import load_wireguard_profile
from chainctl.spec.words import quote

LARGEST_POOL = 1000
"""Files a pattern may match: more is a pattern gone wrong."""


class Pool(NamedTuple):
    profiles: tuple[ServerProfile, ...]
    flaws: list[tuple[int, str]]
    """Of the chain file: which pattern, and what is wrong with it."""
    complaints: list[Complaint]
    """Of the profiles."""


def load_pool(patterns: tuple[str, ...], folder: Path) -> Pool:
    """Read all profiles that `patterns`, relative to `folder`, name. A file counts once."""
    pool = Pool((), [], [])
    files: dict[Path, None] = {}
    for number, pattern in enumerate(patterns):
        try:
            files.update(dict.fromkeys(find_profiles(pattern, folder)))
        except ValueError as error:
            pool.flaws.append((number, str(error)))
    profiles = []
    for file in files:
        try:
            profiles.append(load_wireguard_profile(file))
        except MendFile as error:
            pool.complaints.extend(error.complaints)
    return pool._replace(profiles=tuple(profiles))


def find_profiles(pattern: str, folder: Path) -> list[Path]:
    """The files `pattern` names, sorted; ValueError with the reason when there are none."""
    try:
        os.fsencode(pattern)
    except UnicodeEncodeError:
        raise ValueError(f"{quote(pattern)} is not a possible path") from None
    path = folder / pattern
    if os.path.isdir(path):  # noqa: PTH112 (answers also for what is no possible path)
        meant = f"{pattern.rstrip('/')}/*.conf"
        raise ValueError(f"{quote(pattern)} is a directory; did you mean {quote(meant)}?")
    if not glob.has_magic(pattern):
        if not os.path.lexists(path):
            raise ValueError(f"there is no file {quote(pattern)}; paths are relative to this file")
        return [path]
    # Not recursive (`**` is an ordinary `*`), and stopped at the limit: never a whole disk.
    matches = glob.iglob(os.path.join(glob.escape(str(folder)), pattern))  # noqa: PTH207
    found = list(itertools.islice(matches, LARGEST_POOL + 1))
    if len(found) > LARGEST_POOL:
        raise ValueError(f"{quote(pattern)} matches more than {LARGEST_POOL} files")
    if not found:
        raise ValueError(f"{quote(pattern)} matches no file; paths are relative to this file")
    return [Path(name) for name in sorted(found)]
