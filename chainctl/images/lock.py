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
    OPENVPN = "openvpn"
    PAUSE = "pause"
    """Holds a network namespace where a container is what holds one."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made of: only what `program` needs is taken from `packages`."""

    packages: tuple[str, ...]
    """Every package that supplies a file, no other."""
    main: str
    """The one that brings the program."""
    program: str
    arguments: tuple[str, ...] = ()
    """What the program is always given."""
    directories: tuple[str, ...] = ()
    """Where the runtime binds something: the control socket's directory, a place for files."""

    @property
    def entrypoint(self) -> tuple[str, ...]:
        return (self.program, *self.arguments)


RECIPES = {
    ImageKind.WIREGUARD: Recipe(
        ("libc6", "wireguard-go"),
        "wireguard-go",
        "/usr/bin/wireguard-go",
        directories=("/run/wireguard",),
    ),
    ImageKind.OPENVPN: Recipe(
        (
            *("libc6", "libcap-ng0", "libcap2", "liblz4-1", "liblzo2-2", "libnl-3-200"),
            *("libnl-genl-3-200", "libpkcs11-helper1t64", "libssl3t64", "libsystemd0"),
            *("libxxhash0", "libzstd1", "openvpn", "zlib1g"),
        ),
        "openvpn",
        "/usr/sbin/openvpn",
        # It refuses to start where it cannot write to its directory for temporary files.
        directories=("/run/openvpn", "/tmp"),  # noqa: S108
    ),
    ImageKind.PAUSE: Recipe(("catatonit",), "catatonit", "/usr/bin/catatonit", arguments=("-P",)),
}


LICENCES = {
    "catatonit": "GPL-2.0-or-later AND LGPL-2.1-or-later",
    "libc6": "LGPL-2.1-or-later",
    "libcap-ng0": "LGPL-2.1-or-later",
    "libcap2": "BSD-3-Clause OR GPL-2.0-only",
    "liblz4-1": "BSD-2-Clause",
    "liblzo2-2": "GPL-2.0-or-later",
    "libnl-3-200": "LGPL-2.1-only",
    "libnl-genl-3-200": "LGPL-2.1-only",
    "libpkcs11-helper1t64": "BSD-3-Clause OR GPL-2.0-only",
    "libssl3t64": "Apache-2.0",
    "libsystemd0": "LGPL-2.1-or-later",
    "libxxhash0": "BSD-2-Clause",
    "libzstd1": "BSD-3-Clause OR GPL-2.0-only",
    "openvpn": "GPL-2.0-only WITH openvpn-openssl-exception",
    "wireguard-go": "BSD-3-Clause AND MIT",
    "zlib1g": "Zlib",
}
"""SPDX expressions for the files that are taken, read in the copyright files of the packages.

With the licence of what is linked into the static ones: glibc, Go and its libraries.
"""


def licence_of(kind: ImageKind) -> str:
    """The SPDX expression for all of an image's packages."""
    single = {one for name in RECIPES[kind].packages for one in LICENCES[name].split(" AND ")}
    return " AND ".join(sorted(f"({one})" if " OR " in one else one for one in single))


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
