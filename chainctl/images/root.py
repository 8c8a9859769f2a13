"""The root file system of an image in memory, and the digest that names it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Node:
    """A file (bytes), a link (its target) or a directory (None) of an image, owned by root."""

    mode: int
    content: bytes | str | None = None


Root: TypeAlias = Mapping[str, Node]
"""Paths relative to the root, every parent listed."""


def digest(root: Root) -> str:
    """SHA-256 over every path, mode and content; no time stamps, no archive format."""
    total = hashlib.sha256()
    for path in sorted(root):
        node = root[path]
        content = node.content.encode() if isinstance(node.content, str) else node.content or b""
        total.update(f"{path}\0{node.mode:o}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()
