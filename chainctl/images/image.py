"""Images as they lie on this machine: found, or built, and checked.

Finding one reads two small files. Everything that building needs is imported only when there
is something to build.
"""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainctl.errors import MendFile, MendHost, RefusedByPolicy
from chainctl.host.files import write_atomic
from chainctl.images import shelf
from chainctl.images.lock import (
    RECIPES,
    SUITE,
    ImageKind,
    Lock,
    Package,
    licence_of,
    load_lock,
    parse_lock,
    render_lock,
)
from chainctl.images.root import digest
from chainctl.settings import Settings

if TYPE_CHECKING:
    from chainctl.images.archive import Archive
    from chainctl.images.debian import Assembled

ARCHES = ("amd64", "arm64")
"""What there are images for, as Debian says it."""
_APT = Path("/etc/apt")


@dataclass(frozen=True)
class Image:
    kind: ImageKind
    arch: str
    digest: str
    """Of the tree's content; the same on every machine."""
    root: Path
    pinned: bool
    """False when the pinned packages were gone and newer ones from Debian's index were taken."""
    packages: tuple[str, ...]
    """`name version` of each."""
    size: int
    """Bytes of all its files."""
    gzip_size: int
    """Bytes of its archive, compressed."""

    @property
    def entrypoint(self) -> tuple[str, ...]:
        return RECIPES[self.kind].entrypoint

    @property
    def version(self) -> str:
        """Of the package that brings the program."""
        named = dict(package.split(" ") for package in self.packages)
        return named[RECIPES[self.kind].main]

    @property
    def licence(self) -> str:
        """An SPDX expression over all packages."""
        return licence_of(self.kind)

    @property
    def sbom(self) -> Path:
        """An SPDX document in JSON. The licences in full are in the folder beside it."""
        return self.root.with_name(shelf.SBOM)


def ensure_image(
    kind: ImageKind,
    settings: Settings,
    *,
    arch: str | None = None,
    locked: bool = False,
    apt: Path = _APT,
) -> Image:
    """The image of this version of chainctl, built when it is not here yet.

    Packages leave Debian's mirrors with the next point release. Then the newest ones are taken
    from the signed index (`Image.pinned` False), or with `locked` nothing: RefusedByPolicy
    C705. `arch` is this machine's unless given; nothing is run, so any can be built. Other
    errors are those of `chainctl.images.mirror`, and MendHost C709, C710.
    """
    shipped = load_lock(arch or machine_arch())
    found = _find(kind, shipped, settings.image_dir, locked=locked)
    return found or _build(kind, shipped, settings.image_dir, locked=locked, apt=apt)


def rebuild_if_damaged(image: Image, settings: Settings, *, locked: bool = False) -> Image:
    """`image`, or the same built again when its files are not what the digest says."""
    if is_whole(image):
        return image
    with shelf.only_builder(settings.image_dir):
        shelf.remove(image.root.parent)
    return ensure_image(image.kind, settings, arch=image.arch, locked=locked)


def is_whole(image: Image) -> bool:
    """Reads the whole tree: tens of milliseconds."""
    return digest(shelf.read_root(image.root)) == image.digest


def executables(image: Image) -> list[str]:
    """Paths in the image of all files that can be executed: the program, and its loader."""
    root = shelf.read_root(image.root)
    return [
        f"/{path}"
        for path, node in sorted(root.items())
        if isinstance(node.content, bytes) and node.mode & 0o111
    ]


def verify_image(image: Image) -> list[str]:
    """What the image breaks of its contract, as sentences; empty when it keeps it."""
    from chainctl.images.contract import breaches, unlike_sbom
    from chainctl.images.sbom import parse_sbom

    root = shelf.read_root(image.root)
    found = breaches(image.kind, image.arch, root) + shelf.granted(image.root)
    if digest(root) != image.digest:
        found.append(f"its digest is {digest(root)}")
    pins = load_lock(image.arch).images[image.kind]
    packages = image.packages
    if image.pinned:
        packages = tuple(f"{p.name} {p.version}" for p in pins.packages)
    try:
        sbom = parse_sbom(image.sbom.read_text())
    except (OSError, ValueError) as error:
        return [*found, f"its bill of materials cannot be read: {error}"]
    return found + unlike_sbom(root, sbom, packages)


def verify_archive(path: Path, kind: ImageKind) -> list[str]:
    """Likewise of a file for Docker, whoever made it. Raises MendFile C712 for other files."""
    from chainctl.images.archive import read_archive
    from chainctl.images.contract import archive_breaches

    try:
        return archive_breaches(kind, read_archive(path))
    except (OSError, ValueError) as error:
        raise MendFile("C712", f"cannot read {path} as an image: {error}") from None


def pack_image(image: Image) -> Archive:
    """The image as a tar file for a Docker daemon. Raises MendHost C711 when it is damaged."""
    from chainctl.images.archive import pack

    root = shelf.read_root(image.root)
    if digest(root) != image.digest:
        raise MendHost(
            "C711",
            f"the files of the {image.kind.value} image are not what they were built as",
            hint="chainctl images build",
        )
    return pack(image.kind, image.arch, root)


def list_images(settings: Settings) -> list[Image]:
    """Every image on this machine, also those of other versions of chainctl."""
    pinned = {pins.digest for arch in ARCHES for pins in load_lock(arch).images.values()}
    found = (
        _image(path.parent, pinned=path.parent.name in pinned)
        for path in settings.image_dir.glob(f"*/{shelf.MANIFEST}")
    )
    return sorted(filter(None, found), key=lambda i: (i.kind.value, i.arch, i.digest))


def pin_current(arch: str, settings: Settings) -> Lock:
    """A new lock of what Debian's signed index has now, with the digests of its images."""
    from chainctl.images.debian import assemble, pin
    from chainctl.images.mirror import fetch, read_index, read_mirrors

    mirrors = read_mirrors(_APT)
    with shelf.only_builder(settings.image_dir) as cache:
        lock = pin(read_index(mirrors, SUITE, arch), arch)
        for kind, pins in lock.images.items():
            made = assemble(kind, arch, [(p, fetch(p, mirrors, cache)) for p in pins.packages])
            lock = lock.with_digest(kind, digest(made.root))
    return lock


def machine_arch() -> str:
    """Debian's name for this machine. Raises MendHost C708 when there are no images for it."""
    machine = platform.machine()
    named = dict(zip(("x86_64", "aarch64"), ARCHES, strict=True))
    if machine not in named:
        raise MendHost(
            "C708", f"there are no images for {machine}", hint="use an x86_64 or aarch64 machine"
        )
    return named[machine]


def _find(kind: ImageKind, shipped: Lock, folder: Path, *, locked: bool) -> Image | None:
    if found := _image(folder / shipped.images[kind].digest, pinned=True):
        return found
    replacement = _replacement(kind, shipped, folder)
    if locked or not replacement.exists():
        return None
    taken = parse_lock(replacement.read_text()).images[kind].digest
    return _image(folder / taken, pinned=False)


def _replacement(kind: ImageKind, shipped: Lock, folder: Path) -> Path:
    """The lock that was taken on this machine instead of a shipped one whose packages are gone."""
    return folder / f"instead-of-{shipped.images[kind].digest[:16]}.lock.json"


def _image(folder: Path, *, pinned: bool) -> Image | None:
    """None when there is none, or one of another version that keeps other facts."""
    try:
        facts = json.loads((folder / shelf.MANIFEST).read_text())
        return Image(
            kind=ImageKind(facts["kind"]),
            arch=facts["arch"],
            digest=folder.name,
            root=folder / shelf.ROOT,
            pinned=pinned,
            packages=tuple(facts["packages"]),
            size=facts["size"],
            gzip_size=facts["gzip_size"],
        )
    except (OSError, KeyError, ValueError):
        return None


def _build(kind: ImageKind, shipped: Lock, folder: Path, *, locked: bool, apt: Path) -> Image:
    from chainctl.images.debian import assemble, pin
    from chainctl.images.mirror import MissingAtMirror, fetch, read_index, read_mirrors

    with shelf.only_builder(folder) as cache:
        if found := _find(kind, shipped, folder, locked=locked):
            return found
        mirrors, lock = read_mirrors(apt), shipped

        def fetched(packages: Sequence[Package]) -> list[tuple[Package, bytes]]:
            return [(package, fetch(package, mirrors, cache)) for package in packages]

        try:
            packages = fetched(lock.images[kind].packages)
        except MissingAtMirror as gone:
            if locked:
                raise RefusedByPolicy(
                    gone.code,
                    f"{gone.message}; it is pinned, and newer ones were not wanted",
                    hint="build without --locked, or take a version of chainctl with newer pins",
                ) from None
            lock = pin(read_index(mirrors, shipped.suite, shipped.arch), shipped.arch)
            packages = fetched(lock.images[kind].packages)
        assembled = assemble(kind, lock.arch, packages)
        made = digest(assembled.root)
        if lock is shipped and made != shipped.images[kind].digest:
            raise MendHost(
                "C709",
                f"the {kind.value} image has digest {made}, but "
                f"{shipped.images[kind].digest} is pinned",
                hint="this installation of chainctl is damaged: install it again",
            )
        with shelf.writing(folder):
            shelf.put(folder / made, assembled.root, _texts(kind, lock, assembled))
            if lock is not shipped:
                text = render_lock(lock.with_digest(kind, made))
                write_atomic(_replacement(kind, shipped, folder), text.encode(), 0o644)
        image = _image(folder / made, pinned=lock is shipped)
        assert image is not None
        return image


def _texts(kind: ImageKind, lock: Lock, made: Assembled) -> dict[str, bytes]:
    """What lies beside the root."""
    from chainctl.images.archive import pack
    from chainctl.images.sbom import render_sbom

    contents = [node.content for node in made.root.values() if isinstance(node.content, bytes)]
    facts = {
        "kind": kind.value,
        "arch": lock.arch,
        "packages": [f"{part.package.name} {part.package.version}" for part in made.parts],
        "signed": lock.date,
        "size": sum(map(len, contents)),
        "gzip_size": len(zlib.compress(pack(kind, lock.arch, made.root).data)),
    }
    return {
        shelf.MANIFEST: (json.dumps(facts, indent=1) + "\n").encode(),
        shelf.SBOM: render_sbom(kind, lock.arch, lock.date, made).encode(),
        **{f"{shelf.LICENCES}/{part.package.name}": part.copyright for part in made.parts},
    }
