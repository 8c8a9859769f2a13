"""Images as they lie on this machine, `image_dir/<digest>/rootfs`: found, or built.

Finding one reads two small files. Everything that building needs is imported only when there
is something to build.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainctl.errors import MendHost, RefusedByPolicy
from chainctl.host.files import write_atomic
from chainctl.images.lock import RECIPES, SUITE, ImageKind, Lock, load_lock, parse_lock, render_lock
from chainctl.settings import Settings

if TYPE_CHECKING:
    from chainctl.images.archive import Archive
    from chainctl.images.debian import Root

_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_APT = Path("/etc/apt")


@dataclass(frozen=True)
class Image:
    kind: ImageKind
    digest: str
    """Of the tree's content; the same on every machine."""
    root: Path
    pinned: bool
    """False when the pinned packages were gone and newer ones from Debian's index were taken."""
    packages: tuple[str, ...]
    """`name version` of each."""

    @property
    def entrypoint(self) -> tuple[str, ...]:
        return RECIPES[self.kind].entrypoint


def ensure_image(
    kind: ImageKind, settings: Settings, *, locked: bool = False, apt: Path = _APT
) -> Image:
    """The image of this version of chainctl, built when it is not here yet.

    Packages leave Debian's mirrors with the next point release. Then the newest ones are taken
    from the signed index (`Image.pinned` False), or with `locked` nothing: RefusedByPolicy
    C705. Other errors are those of `chainctl.images.mirror`, and MendHost C709, C710.
    """
    shipped = load_lock(machine_arch())
    found = _find(kind, shipped, settings.image_dir, locked=locked)
    return found or _build(kind, shipped, settings.image_dir, locked=locked, apt=apt)


def rebuild_if_damaged(image: Image, settings: Settings, *, locked: bool = False) -> Image:
    """`image`, or the same built again when its files are not what the digest says."""
    if is_whole(image):
        return image
    with _only_builder(settings.image_dir):
        _remove(image.root.parent)
    return ensure_image(image.kind, settings, locked=locked)


def is_whole(image: Image) -> bool:
    """Reads the whole tree: tens of milliseconds."""
    from chainctl.images.debian import digest

    return image.root.is_dir() and digest(_read_root(image.root)) == image.digest


def pack_image(image: Image) -> Archive:
    """The image as a tar file for a Docker daemon. Raises MendHost C711 when it is damaged."""
    from chainctl.images.archive import pack
    from chainctl.images.debian import digest

    root = _read_root(image.root) if image.root.is_dir() else {}
    if digest(root) != image.digest:
        raise MendHost(
            "C711",
            f"the files of the {image.kind.value} image are not what they were built as",
            hint="chainctl images build",
        )
    return pack(image.kind, machine_arch(), root)


def list_images(settings: Settings) -> list[Image]:
    """Every image on this machine, also those of other versions of chainctl."""
    pinned = {pins.digest for pins in load_lock(machine_arch()).images.values()}
    kinds = {kind.value for kind in ImageKind}
    return [
        _image(path.parent, pinned=path.parent.name in pinned)
        for path in sorted(settings.image_dir.glob("*/manifest.json"))
        # A newer version of chainctl may keep kinds here that this one does not know.
        if json.loads(path.read_text())["kind"] in kinds
    ]


def pin_current(arch: str, settings: Settings) -> Lock:
    """A new lock of what Debian's signed index has now, with the digests of its images."""
    from chainctl.images.debian import assemble, digest, pin
    from chainctl.images.mirror import fetch, read_index, read_mirrors

    mirrors = read_mirrors(_APT)
    with _only_builder(settings.image_dir) as cache:
        lock = pin(read_index(mirrors, SUITE, arch), arch)
        for kind, pins in lock.images.items():
            root = assemble(kind, arch, [fetch(p, mirrors, cache) for p in pins.packages])
            lock = lock.with_digest(kind, digest(root))
    return lock


def machine_arch() -> str:
    """Debian's name for this machine. Raises MendHost C708 when there are no images for it."""
    machine = platform.machine()
    if machine not in _ARCHES:
        raise MendHost(
            "C708", f"there are no images for {machine}", hint="use an x86_64 or aarch64 machine"
        )
    return _ARCHES[machine]


def _find(kind: ImageKind, shipped: Lock, folder: Path, *, locked: bool) -> Image | None:
    pinned = folder / shipped.images[kind].digest
    if (pinned / "manifest.json").exists():
        return _image(pinned, pinned=True)
    replacement = _replacement(kind, shipped, folder)
    if locked or not replacement.exists():
        return None
    taken = folder / parse_lock(replacement.read_text()).images[kind].digest
    return _image(taken, pinned=False) if (taken / "manifest.json").exists() else None


def _replacement(kind: ImageKind, shipped: Lock, folder: Path) -> Path:
    """The lock that was taken on this machine instead of a shipped one whose packages are gone."""
    return folder / f"instead-of-{shipped.images[kind].digest[:16]}.lock.json"


def _image(folder: Path, *, pinned: bool) -> Image:
    manifest = json.loads((folder / "manifest.json").read_text())
    kind, packages = ImageKind(manifest["kind"]), tuple(manifest["packages"])
    return Image(kind, folder.name, folder / "rootfs", pinned, packages)


def _build(kind: ImageKind, shipped: Lock, folder: Path, *, locked: bool, apt: Path) -> Image:
    from chainctl.images.debian import assemble, digest, pin
    from chainctl.images.mirror import MissingAtMirror, fetch, read_index, read_mirrors

    with _only_builder(folder) as cache:
        if found := _find(kind, shipped, folder, locked=locked):
            return found
        mirrors, lock = read_mirrors(apt), shipped
        try:
            packages = [fetch(p, mirrors, cache) for p in lock.images[kind].packages]
        except MissingAtMirror as gone:
            if locked:
                raise RefusedByPolicy(
                    gone.code,
                    f"{gone.message}; it is pinned, and newer ones were not wanted",
                    hint="build without --locked, or take a version of chainctl with newer pins",
                ) from None
            lock = pin(read_index(mirrors, shipped.suite, shipped.arch), shipped.arch)
            packages = [fetch(p, mirrors, cache) for p in lock.images[kind].packages]
        root = assemble(kind, lock.arch, packages)
        made = digest(root)
        if lock is shipped and made != shipped.images[kind].digest:
            raise MendHost(
                "C709",
                f"the {kind.value} image has digest {made}, but "
                f"{shipped.images[kind].digest} is pinned",
                hint="this installation of chainctl is damaged: install it again",
            )
        with _writing(folder):
            _store(kind, lock, root, folder / made)
            if lock is not shipped:
                text = render_lock(lock.with_digest(kind, made))
                write_atomic(_replacement(kind, shipped, folder), text.encode(), 0o644)
        return _image(folder / made, pinned=lock is shipped)


@contextmanager
def _only_builder(folder: Path) -> Iterator[Path]:
    """One builder at a time, and no rests of an earlier one. Gives the folder of downloads."""
    cache = folder / "cache"
    with _writing(folder):
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
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MendHost(
            "C710",
            f"cannot write below {folder}: {error.strerror}",
            hint="run as root and make room, or point CHAINCTL_IMAGE_DIR at another disk",
        ) from None


def _store(kind: ImageKind, lock: Lock, root: Root, target: Path) -> None:
    """Appear whole or not at all, also after a power cut."""
    if target.exists():
        _remove(target)
    building = target.with_name(f".{target.name}")
    _write_root(root, building / "rootfs")
    packages = [f"{p.name} {p.version}" for p in lock.images[kind].packages]
    manifest = {"kind": kind.value, "packages": packages, "signed": lock.date}
    write_atomic(
        building / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode(), 0o644
    )
    os.sync()
    building.rename(target)


def _remove(image: Path) -> None:
    doomed = image.with_name(f".gone-{image.name}")
    image.rename(doomed)
    shutil.rmtree(doomed)


def _write_root(root: Root, target: Path) -> None:
    target.mkdir(parents=True)
    target.chmod(0o755)
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


def _read_root(target: Path) -> Root:
    from chainctl.images.debian import Node

    root: dict[str, Node] = {}
    for place in target.rglob("*"):
        mode = place.lstat().st_mode
        if stat.S_ISLNK(mode):
            content: bytes | str | None = str(place.readlink())
        else:
            content = place.read_bytes() if stat.S_ISREG(mode) else None
        root[str(place.relative_to(target))] = Node(mode, content)
    return root
