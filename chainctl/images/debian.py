"""Hop images assembled from Debian packages, without running anything from them.

An image is a tree of the few files one program needs: the program, its dynamic loader, its
libraries, and the names of its users. There is no shell and nothing else to execute. The same
packages give the same tree, byte for byte, on every machine.
"""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from chainctl.errors import MendHost
from chainctl.images.deb import Entry, File, Link, Tree, control, follow, unpack
from chainctl.images.elf import parse_elf
from chainctl.images.lock import RECIPES, SUITE, ImageKind, Lock, Package, Pins, Recipe
from chainctl.images.mirror import Index
from chainctl.images.root import Node, Root

_TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
UID = 65532
"""Who an image runs as where the runtime gives no other (distroless' `nonroot`)."""


@dataclass(frozen=True)
class Part:
    """What one package gave to an image."""

    package: Package
    source: str
    """`name version` of the source package it was built from."""
    built_using: tuple[str, ...]
    """`name version` of source packages whose code is linked into it (Debian Policy 7.8)."""
    files: tuple[str, ...]
    """Paths in the root, links too."""
    copyright: bytes
    """The licences in full, and who holds the rights (Debian Policy 12.5)."""


@dataclass(frozen=True)
class Assembled:
    root: Root
    parts: tuple[Part, ...]


_DIRECTORY = Node(stat.S_IFDIR | 0o755)


def pin(index: Index, arch: str) -> Lock:
    """What `index` has now. The digests are empty still, since nothing was unpacked yet."""
    images = {
        kind: Pins("", tuple(index.package(name) for name in recipe.packages))
        for kind, recipe in RECIPES.items()
    }
    return Lock(SUITE, arch, index.date, images)


def assemble(kind: ImageKind, arch: str, packages: Iterable[tuple[Package, bytes]]) -> Assembled:
    """The root file system. Raises MendHost C707 when the packages lack what it needs."""
    recipe = RECIPES[kind]
    try:
        parcels = [(package, data, unpack(data)) for package, data in packages]
        tree: dict[str, Entry] = {}
        for _, _, inside in parcels:
            tree.update(inside)
        paths = closure(tree, recipe.program, arch)
        parts = tuple(_part(package, data, inside, paths) for package, data, inside in parcels)
    except ValueError as error:
        raise MendHost("C707", f"cannot assemble the {kind.value} image: {error}") from None
    started = programs(tree, recipe.program)
    taken = {path.strip("/"): _node(tree[path], path in started) for path in paths}
    return Assembled(_with_parents(_skeleton(recipe) | taken), parts)


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


def programs(tree: Tree, program: str) -> set[str | None]:
    """What the kernel starts: the program and its loader. A library is only read (mmap(2))."""
    path, _ = follow(tree, program)
    entry = tree.get(path or "")
    elf = parse_elf(entry.content) if isinstance(entry, File) else None
    loader = follow(tree, elf.interpreter)[0] if elf and elf.interpreter else None
    return {path, loader}


def _part(package: Package, data: bytes, inside: Tree, paths: set[str]) -> Part:
    fields = control(data)
    notice, _ = follow(inside, f"/usr/share/doc/{package.name}/copyright")
    entry = inside.get(notice or "")
    if not isinstance(entry, File):
        raise ValueError(f"{package.name} comes without its licence")
    source, _, version = fields.get("Source", package.name).partition(" ")
    return Part(
        package=package,
        source=f"{source} {version.strip('()') or package.version}",
        built_using=tuple(
            f"{name} {version}"
            for field in ("Built-Using", "Static-Built-Using")
            for name, version in re.findall(r"(\S+) \(= (\S+)\)", fields.get(field, ""))
        ),
        files=tuple(sorted(path.strip("/") for path in paths & inside.keys())),
        copyright=entry.content,
    )


def _library(tree: Tree, name: str, directories: Iterable[str]) -> str:
    for directory in directories:
        if follow(tree, f"{directory}/{name}")[0]:
            return f"{directory}/{name}"
    raise ValueError(f"the library {name} is in none of the packages")


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
