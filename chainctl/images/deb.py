"""Debian packages as trees of files in memory (deb(5)). Nothing in them is ever executed."""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_MERGED = ("bin", "sbin", "lib", "lib64")
"""Top directories that are links into /usr since Debian 12."""


@dataclass(frozen=True)
class File:
    content: bytes


@dataclass(frozen=True)
class Link:
    target: str


Entry: TypeAlias = File | Link
Tree: TypeAlias = Mapping[str, Entry]
"""Absolute normal paths below a merged /usr."""


def unpack(package: bytes) -> dict[str, Entry]:
    """The files and links of a package. Raises ValueError when it is not one we can read."""
    tree: dict[str, Entry] = {}
    with tarfile.open(fileobj=io.BytesIO(_member(package, "data.tar"))) as archive:
        for member in archive:
            path = normal(member.name)
            if member.issym():
                tree[path] = Link(member.linkname)
            elif member.isfile() or member.islnk():
                # `extractfile` follows a hard link to the member that holds the content.
                content = archive.extractfile(member)
                if content is None:
                    raise ValueError(f"{path} is a hard link to nothing")
                tree[path] = File(content.read())
    return tree


def control(package: bytes) -> dict[str, str]:
    """The fields of a package's control file, continued lines folded (deb-control(5))."""
    with tarfile.open(fileobj=io.BytesIO(_member(package, "control.tar"))) as archive:
        for entry in archive:
            file = archive.extractfile(entry) if normal(entry.name) == "/control" else None
            if file is not None:
                text = re.sub(r"\n[ \t]+", " ", file.read().decode())
                return dict(re.findall(r"^(\S+?):[ \t]*(.*)$", text, re.M))
    raise ValueError("not a Debian package: it has no control file")


def normal(path: str) -> str:
    """`./lib/x` as `/usr/lib/x`."""
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return f"/usr{clean}" if clean.split("/")[1] in _MERGED else clean


def follow(tree: Tree, path: str) -> tuple[str | None, tuple[str, ...]]:
    """The file that `path` names at last, and the links passed on the way to it."""
    passed: list[str] = []
    current = normal(path)
    while isinstance(entry := tree.get(current), Link):
        if current in passed:
            return None, tuple(passed)
        passed.append(current)
        current = normal(posixpath.join(posixpath.dirname(current), entry.target))
    return (None if entry is None else current), tuple(passed)


def _member(package: bytes, wanted: str) -> bytes:
    for name, content in _members(package):
        if name.startswith(wanted):
            return content
    raise ValueError(f"not a Debian package: it has no {wanted}")


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    if not archive.startswith(_AR_MAGIC):
        raise ValueError("not a Debian package: it is no ar archive")
    offset = len(_AR_MAGIC)
    while offset + _AR_HEADER <= len(archive):
        header = archive[offset : offset + _AR_HEADER]
        size = int(header[48:58])
        start = offset + _AR_HEADER
        yield header[:16].decode().strip().rstrip("/"), archive[start : start + size]
        offset = start + size + size % 2
