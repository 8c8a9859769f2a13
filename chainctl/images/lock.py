"""Kinds of images, and the lock files that pin the Debian packages they are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum

from chainctl.host.files import data_path

SUITE = "trixie"
"""Bookworm's wireguard-go has no segmentation offload: 0.5 Gbit/s where this one has 3."""


class ImageKind(Enum):
    WIREGUARD = "wireguard"


@dataclass(frozen=True)
class Recipe:
    """What an image is made of: only what `program` needs is taken from `packages`."""

    packages: tuple[str, ...]
    program: str
    runtime_dir: str
    """Where the runtime binds the directory of the control socket."""

    @property
    def entrypoint(self) -> tuple[str, ...]:
        return (self.program,)


RECIPES = {
    ImageKind.WIREGUARD: Recipe(
        ("libc6", "wireguard-go"), "/usr/bin/wireguard-go", "/run/wireguard"
    ),
}


@dataclass(frozen=True)
class Package:
    """One binary package: `path` is relative to the root of the archive."""

    name: str
    version: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Pins:
    """The packages of one image, and the digest of the tree they give."""

    digest: str
    packages: tuple[Package, ...]


@dataclass(frozen=True)
class Lock:
    suite: str
    arch: str
    date: str
    """When Debian signed the index that named the packages."""
    images: Mapping[ImageKind, Pins]

    def with_digest(self, kind: ImageKind, digest: str) -> Lock:
        pins = replace(self.images[kind], digest=digest)
        return replace(self, images={**self.images, kind: pins})


def load_lock(arch: str) -> Lock:
    """The lock file that came with this version of chainctl."""
    return parse_lock(data_path(lock_name(arch)).read_text())


def lock_name(arch: str) -> str:
    return f"debian-{SUITE}-{arch}.lock.json"


def parse_lock(text: str) -> Lock:
    raw = json.loads(text)
    images = {
        ImageKind(kind): Pins(pins["digest"], tuple(Package(**p) for p in pins["packages"]))
        for kind, pins in raw["images"].items()
    }
    return Lock(raw["suite"], raw["arch"], raw["date"], images)


def render_lock(lock: Lock) -> str:
    images = {
        kind.value: {"digest": pins.digest, "packages": [asdict(p) for p in pins.packages]}
        for kind, pins in lock.images.items()
    }
    head = {"suite": lock.suite, "arch": lock.arch, "date": lock.date}
    return json.dumps({**head, "images": images}, indent=1) + "\n"
