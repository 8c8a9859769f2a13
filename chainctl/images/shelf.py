"""The folder where images lie: one builder at a time, each image there whole or not at all.

<digest>/rootfs           what a client sees as /
<digest>/manifest.json    what it is; its presence says that the image is whole
<digest>/sbom.spdx.json   what it is made of
<digest>/licences/NAME    the copyright file of each package
cache/<sha256>            packages as they were downloaded
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chainctl.errors import MendHost
from chainctl.host.files import write_atomic
from chainctl.images.root import Node, Root

ROOT, MANIFEST, SBOM, LICENCES = "rootfs", "manifest.json", "sbom.spdx.json", "licences"


@contextmanager
def only_builder(folder: Path) -> Iterator[Path]:
    """One builder at a time, and no rests of an earlier one. Gives the folder of downloads."""
    cache = folder / "cache"
    with writing(folder):
        cache.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for rest in folder.glob(".*"):
            if rest.is_dir():
                shutil.rmtree(rest)
        for rest in cache.glob("*.arriving*"):
            rest.unlink()
        yield cache
    finally:
        os.close(handle)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MendHost(
            "C710",
            f"cannot write below {folder}: {error.strerror}",
            hint="run as root and make room, or point CHAINCTL_IMAGE_DIR at another disk",
        ) from None


def put(target: Path, root: Root, texts: Mapping[str, bytes]) -> None:
    """Image and `texts` (path below `target`: content) appear at once, also after a power cut."""
    building = target.with_name(f".{target.name}")
    _write_root(root, building / ROOT)
    for name, text in texts.items():
        _ensure_parent(building / name)
        write_atomic(building / name, text, 0o644)
    os.sync()
    if target.exists():
        remove(target)
    building.rename(target)


def remove(target: Path) -> None:
    """Whoever still runs from it keeps the files he has open."""
    doomed = target.with_name(f".gone-{target.name}")
    target.rename(doomed)
    shutil.rmtree(doomed)


def read_root(target: Path) -> Root:
    """The files below `target`; empty when it is not there."""
    root: dict[str, Node] = {}
    for place in target.rglob("*"):
        mode = place.lstat().st_mode
        if stat.S_ISLNK(mode):
            content: bytes | str | None = str(place.readlink())
        else:
            content = place.read_bytes() if stat.S_ISREG(mode) else None
        root[str(place.relative_to(target))] = Node(mode, content)
    return root


def granted(target: Path) -> list[str]:
    """Rights that files have beside their mode: capabilities (capabilities(7)), other owners."""
    found: list[str] = []
    for place in sorted(target.rglob("*")):
        path, owner = place.relative_to(target), place.lstat().st_uid
        if owner not in (0, os.geteuid()):
            found.append(f"{path} belongs to the user {owner}")
        if "security.capability" in os.listxattr(place, follow_symlinks=False):
            found.append(f"{path} carries capabilities")
    return found


def _ensure_parent(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.parent.chmod(0o755)


def _write_root(root: Root, target: Path) -> None:
    target.mkdir(parents=True)
    for folder in (target.parent, target):
        folder.chmod(0o755)
    for path in sorted(root):
        node, place = root[path], target / path
        if isinstance(node.content, str):
            place.symlink_to(node.content)
            continue
        if node.content is None:
            place.mkdir()
        else:
            place.write_bytes(node.content)
        place.chmod(stat.S_IMODE(node.mode))
