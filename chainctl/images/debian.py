"""Hop images assembled from Debian packages, without running anything from them.

An image is a tree of the few files one program needs: the program, its dynamic loader, its
libraries, and the names of its users. There is no shell and nothing else to execute. The same
packages give the same tree, byte for byte, on every machine.
"""

from __future__ import annotations

import hashlib
import posixpath
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from chainctl.errors import MendHost
from chainctl.images.deb import Entry, File, Link, Tree, follow, unpack
from chainctl.images.elf import parse_elf
from chainctl.images.lock import RECIPES, SUITE, ImageKind, Lock, Pins, Recipe
from chainctl.images.mirror import Index

_TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
UID = 65532
"""Who an image runs as where the runtime gives no other (distroless' `nonroot`)."""


@dataclass(frozen=True)
class Node:
    """A file (bytes), a link (its target) or a directory (None) of an image, owned by root."""

    mode: int
    content: bytes | str | None = None


Root: TypeAlias = Mapping[str, Node]
"""Paths relative to the root, every parent listed."""

_DIRECTORY = Node(stat.S_IFDIR | 0o755)


def pin(index: Index, arch: str) -> Lock:
    """What `index` has now. The digests are empty still, since nothing was unpacked yet."""
    images = {
        kind: Pins("", tuple(index.package(name) for name in recipe.packages))
        for kind, recipe in RECIPES.items()
    }
    return Lock(SUITE, arch, index.date, images)


def assemble(kind: ImageKind, arch: str, packages: Iterable[bytes]) -> Root:
    """The root file system. Raises MendHost C707 when the packages lack what it needs."""
    tree: dict[str, Entry] = {}
    try:
        for package in packages:
            tree.update(unpack(package))
        paths = closure(tree, RECIPES[kind].program, arch)
    except ValueError as error:
        raise MendHost("C707", f"cannot assemble the {kind.value} image: {error}") from None
    started = _started(tree, RECIPES[kind].program)
    taken = {path.strip("/"): _node(tree[path], path in started) for path in paths}
    return _with_parents(_skeleton(RECIPES[kind]) | taken)


def closure(tree: Tree, program: str, arch: str) -> set[str]:
    """Files and links needed to run `program`, found as ld.so(8) finds them."""
    defaults = (f"/usr/lib/{_TRIPLETS[arch]}", "/usr/lib", "/usr/lib64")
    needed: set[str] = set()
    waiting = [program]
    while waiting:
        wanted = waiting.pop()
        path, links = follow(tree, wanted)
        if path is None:
            raise ValueError(f"{wanted} is in none of the packages")
        needed.update(links)
        if path in needed:
            continue
        needed.add(path)
        entry = tree[path]
        elf = parse_elf(entry.content) if isinstance(entry, File) else None
        if elf is None:
            continue
        own = tuple(s.replace("$ORIGIN", posixpath.dirname(path)) for s in elf.search)
        waiting += [_library(tree, name, own + defaults) for name in elf.needed]
        waiting += [elf.interpreter] if elf.interpreter else []
    return needed


def digest(root: Root) -> str:
    """SHA-256 over every path, mode and content; no time stamps, no archive format."""
    total = hashlib.sha256()
    for path in sorted(root):
        node = root[path]
        content = node.content.encode() if isinstance(node.content, str) else node.content or b""
        total.update(f"{path}\0{node.mode:o}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def _library(tree: Tree, name: str, directories: Iterable[str]) -> str:
    for directory in directories:
        if follow(tree, f"{directory}/{name}")[0]:
            return f"{directory}/{name}"
    raise ValueError(f"the library {name} is in none of the packages")


def _started(tree: Tree, program: str) -> set[str | None]:
    """What the kernel starts: the program and its loader. A library is only read (mmap(2))."""
    path, _ = follow(tree, program)
    entry = tree.get(path or "")
    elf = parse_elf(entry.content) if isinstance(entry, File) else None
    loader = follow(tree, elf.interpreter)[0] if elf and elf.interpreter else None
    return {path, loader}


def _node(entry: Entry, started: bool) -> Node:
    if isinstance(entry, Link):
        return _link(entry.target)
    return Node(stat.S_IFREG | (0o755 if started else 0o644), entry.content)


def _link(target: str) -> Node:
    return Node(stat.S_IFLNK | 0o777, target)


def _skeleton(recipe: Recipe) -> dict[str, Node]:
    """Mount points, the links of a merged /usr, and the two users."""
    texts = {
        "etc/passwd": f"root:x:0:0:root:/:/nonexistent\nhop:x:{UID}:{UID}:hop:/:/nonexistent\n",
        "etc/group": f"root:x:0:\nhop:x:{UID}:\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    }
    merged = ("bin", "sbin", "lib", "lib64")
    return {
        **dict.fromkeys(("dev", "proc", "run"), _DIRECTORY),
        **{path.strip("/"): _DIRECTORY for path in recipe.directories},
        **dict.fromkeys((f"usr/{name}" for name in merged), _DIRECTORY),
        **{name: _link(f"usr/{name}") for name in merged},
        **{path: Node(stat.S_IFREG | 0o644, text.encode()) for path, text in texts.items()},
        "var/run": _link("../run"),
    }


def _with_parents(root: dict[str, Node]) -> Root:
    for path in list(root):
        while path := posixpath.dirname(path):
            root.setdefault(path, _DIRECTORY)
    return root
