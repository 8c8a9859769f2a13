"""What an image promises, checked against its files: pure, nothing of it is run.

One program, no shell, no right that a file could give, no library that nobody needs or that is
missing, and nothing that its bill of materials does not name.
"""

from __future__ import annotations

import hashlib
import posixpath
import stat
from collections.abc import Iterator

from chainctl.images.archive import Loaded
from chainctl.images.deb import Entry, File, Link, follow
from chainctl.images.debian import UID, closure, programs
from chainctl.images.elf import parse_elf
from chainctl.images.lock import RECIPES, ImageKind
from chainctl.images.root import Node, Root
from chainctl.images.sbom import Sbom

_SHELLS = {
    *("ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "lua", "mksh", "perl", "python3"),
    *("sh", "sash", "tcsh", "toybox", "zsh"),
}

_NOTHING = Node(0, b"")


def breaches(kind: ImageKind, arch: str, root: Root) -> list[str]:
    """What the files of `root` break of the contract, as sentences; empty when they keep it."""
    tree = {f"/{path}": entry for path, node in root.items() if (entry := _entry(node))}
    return [
        *(words for path in sorted(root) for words in _of_node(path, root[path])),
        *_executables(root, tree, RECIPES[kind].program),
        *_libraries(tree, RECIPES[kind].program, arch),
        *_links(root, tree),
    ]


def archive_breaches(kind: ImageKind, loaded: Loaded) -> list[str]:
    """Likewise of an archive, whoever made it, and of how it says it is to be run."""
    recipe, user = RECIPES[kind], f"{UID}:{UID}"
    wanted = {"Entrypoint": list(recipe.entrypoint), "User": user}
    return [
        *breaches(kind, loaded.arch, loaded.root),
        *loaded.granted,
        *(
            f"its {key} is {loaded.config.get(key)}, not {value}"
            for key, value in wanted.items()
            if loaded.config.get(key) != value
        ),
        *(
            f"it sets {key}"
            for key in ("Cmd", "ExposedPorts", "Healthcheck", "Shell", "Volumes")
            if loaded.config.get(key)
        ),
        *(
            f"there is no directory {path}"
            for path in recipe.directories
            if loaded.root.get(path.strip("/"), _NOTHING).content is not None
        ),
    ]


def unlike_sbom(root: Root, sbom: Sbom, packages: tuple[str, ...]) -> list[str]:
    """Where the files, or the packages that were pinned, are not those of the document."""
    files = {
        path: hashlib.sha256(node.content).hexdigest()
        for path, node in root.items()
        if isinstance(node.content, bytes)
    }
    return [
        *(f"{path} is not in the bill of materials" for path in sorted(files.keys() - sbom.files)),
        *(f"{path} is missing" for path in sorted(sbom.files.keys() - files)),
        *(
            f"{path} is another file than the one in the bill of materials"
            for path in sorted(files.keys() & sbom.files)
            if files[path] != sbom.files[path]
        ),
        *(
            f"{package} is not in both the lock and the bill of materials"
            for package in sorted(set(packages) ^ set(sbom.packages))
        ),
    ]


def _entry(node: Node) -> Entry | None:
    if node.content is None:
        return None
    return Link(node.content) if isinstance(node.content, str) else File(node.content)


def _of_node(path: str, node: Node) -> Iterator[str]:
    kind = stat.S_IFMT(node.mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        yield f"{path} is a device, a pipe or a socket"
    if kind == stat.S_IFREG and node.mode & (stat.S_ISUID | stat.S_ISGID):
        yield f"{path} is set-user-id or set-group-id"
    if kind != stat.S_IFLNK and node.mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield f"{path} can be written by others than its owner"
    if kind != stat.S_IFDIR and posixpath.basename(path) in _SHELLS:
        yield f"{path} is named like a shell"
    if isinstance(node.content, bytes) and node.content.startswith(b"#!"):
        yield f"{path} is a script"


def _executables(root: Root, tree: dict[str, Entry], program: str) -> Iterator[str]:
    allowed = programs(tree, program)
    for path, node in sorted(root.items()):
        executable = stat.S_ISREG(node.mode) and node.mode & 0o111
        if executable and f"/{path}" not in allowed:
            yield f"{path} can be executed, and is not the program"


def _libraries(tree: dict[str, Entry], program: str, arch: str) -> Iterator[str]:
    try:
        needed = closure(tree, program, arch)
    except ValueError as error:
        yield str(error).replace("in none of the packages", "missing")
        return
    for path, entry in sorted(tree.items()):
        if isinstance(entry, File) and path not in needed and parse_elf(entry.content):
            yield f"{path.lstrip('/')} is needed by nothing"


def _links(root: Root, tree: dict[str, Entry]) -> Iterator[str]:
    for path, node in sorted(root.items()):
        if not isinstance(node.content, str):
            continue
        target = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), node.content))
        if target.strip("/") not in root and follow(tree, target)[0] is None:
            yield f"{path} points to nothing"
