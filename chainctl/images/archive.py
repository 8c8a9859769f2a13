"""An image as one tar file, for `docker load` and for whatever reads OCI layouts.

The file is a docker-archive and an OCI image layout at once: both indexes name the same blobs.
Its bytes depend on the root file system alone, so that its digests are the same on every
machine. Hence nothing is compressed (gzip differs between versions of zlib), and headers are
written by hand (those of `tarfile` differ between versions of Python).
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainctl.images.debian import UID
from chainctl.images.lock import RECIPES, ImageKind, licence_of
from chainctl.images.root import Node, Root, digest

_BLOCK = 512
_EPOCH = "1970-01-01T00:00:00Z"
"""The image is made of older things, and the time of its building is nobody's business."""
_OCI = "application/vnd.oci.image"


@dataclass(frozen=True)
class Archive:
    """A tar file and what it is called once it was loaded."""

    reference: str
    """`chainctl/KIND:DIGEST`, with the first twelve digits of the root's digest."""
    config_digest: str
    """`sha256:…`, Docker's image id where images lie in a graph driver."""
    manifest_digest: str
    """`sha256:…`, the image id where they lie in containerd, and for registries."""
    data: bytes


@dataclass(frozen=True)
class Loaded:
    """What is in an archive, whoever made it."""

    arch: str
    config: Mapping[str, Any]
    """How it is run (OCI image-spec, config.md)."""
    root: Root
    granted: list[str]
    """Rights that its files have beside their mode, as sentences."""


def pack(kind: ImageKind, arch: str, root: Root) -> Archive:
    """The archive of `root`, in one layer."""
    layer = render_tar(root)
    config = _json(_config(kind, arch, digest(root), layer))
    manifest = _json(_manifest(config, layer))
    reference = f"chainctl/{kind.value}:{digest(root)[:12]}"
    files = {
        **{_blob(data): data for data in (layer, config, manifest)},
        "index.json": _json(_index(manifest, arch, reference)),
        "manifest.json": _json(
            [{"Config": _blob(config), "RepoTags": [reference], "Layers": [_blob(layer)]}]
        ),
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
    }
    nodes = {path: Node(stat.S_IFREG | 0o644, data) for path, data in files.items()}
    directories = {path: Node(stat.S_IFDIR | 0o755) for path in ("blobs", "blobs/sha256")}
    data = render_tar({**directories, **nodes})
    return Archive(reference, _sha256(config), _sha256(manifest), data)


def read_archive(path: Path) -> Loaded:
    """What `docker load` would take from `path`. Raises ValueError when it is no docker-archive."""
    try:
        with tarfile.open(path) as archive:
            (listed,) = json.loads(_content(archive, "manifest.json"))
            config = json.loads(_content(archive, listed["Config"]))
            layers = [_content(archive, name) for name in listed["Layers"]]
    except (tarfile.TarError, KeyError, TypeError) as error:
        raise ValueError(f"not an image for Docker: {error!r}") from None
    root: dict[str, Node] = {}
    granted: list[str] = []
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            for member in tar:
                path_in_root = posixpath.normpath(f"/{member.name}").lstrip("/")
                if path_in_root:
                    root[path_in_root] = _node(tar, member)
                    granted += _granted(path_in_root, member)
    return Loaded(str(config["architecture"]), config["config"], root, granted)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _node(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Node:
    name = posixpath.basename(member.name)
    if name.startswith(".wh."):
        raise ValueError(f"{member.name} takes back what a layer below brought")
    if member.issym():
        return Node(stat.S_IFLNK | 0o777, member.linkname)
    if member.isdir():
        return Node(stat.S_IFDIR | member.mode)
    file = tar.extractfile(member) if member.isfile() or member.islnk() else None
    if file is None:
        return Node(stat.S_IFCHR | member.mode)
    return Node(stat.S_IFREG | member.mode, file.read())


def _granted(path: str, member: tarfile.TarInfo) -> list[str]:
    """As `chainctl.images.shelf.granted`, for members of a layer."""
    found = [f"{path} belongs to the user {member.uid}"] if member.uid else []
    if any(name.endswith("security.capability") for name in member.pax_headers):
        found.append(f"{path} carries capabilities")
    return found


def render_tar(root: Root) -> bytes:
    """`root` as ustar (POSIX.1-1988), owned by root, without times."""
    parts: list[bytes] = []
    for path in sorted(root, key=str.encode):
        node = root[path]
        content = node.content if isinstance(node.content, bytes) else b""
        parts += [_header(path, node, len(content)), content, bytes(-len(content) % _BLOCK)]
    return b"".join([*parts, bytes(2 * _BLOCK)])


def _header(path: str, node: Node, size: int) -> bytes:
    name, kind, target = path.encode(), b"0", b""
    if node.content is None:
        name, kind = name + b"/", b"5"
    elif isinstance(node.content, str):
        kind, target = b"2", node.content.encode()
    if max(len(name), len(target)) > 100:
        raise ValueError(f"{path} or where it points to is too long for an archive")
    fields = [
        name.ljust(100, b"\0"),
        *(b"%07o\0" % number for number in (stat.S_IMODE(node.mode), 0, 0)),
        *(b"%011o\0" % number for number in (size, 0)),
    ]
    rest = kind + target.ljust(100, b"\0") + b"ustar\x0000"
    # The sum counts its own field as eight blanks.
    total = sum(b"".join(fields)) + 8 * ord(" ") + sum(rest)
    return (b"".join(fields) + b"%06o\0 " % total + rest).ljust(_BLOCK, b"\0")


def _config(kind: ImageKind, arch: str, tree_digest: str, layer: bytes) -> dict[str, Any]:
    recipe = RECIPES[kind]
    return {
        "architecture": arch,
        "os": "linux",
        "created": _EPOCH,
        "config": {
            "Entrypoint": list(recipe.entrypoint),
            "User": f"{UID}:{UID}",
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": {
                "chainctl.digest": tree_digest,
                "chainctl.kind": kind.value,
                "org.opencontainers.image.licenses": licence_of(kind),
                "org.opencontainers.image.title": f"chainctl {kind.value}",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [_sha256(layer)]},
        "history": [{"created": _EPOCH, "created_by": "chainctl images build"}],
    }


def _manifest(config: bytes, layer: bytes) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _descriptor(f"{_OCI}.config.v1+json", config),
        "layers": [_descriptor(f"{_OCI}.layer.v1.tar", layer)],
    }


def _index(manifest: bytes, arch: str, reference: str) -> dict[str, Any]:
    named = {
        "io.containerd.image.name": f"docker.io/{reference}",
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    entry = {
        **_descriptor(f"{_OCI}.manifest.v1+json", manifest),
        "platform": {"architecture": arch, "os": "linux"},
        "annotations": named,
    }
    return {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": [entry]}


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _sha256(data), "size": len(data)}


def _blob(data: bytes) -> str:
    return f"blobs/sha256/{_sha256(data).partition(':')[2]}"


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
