"""Every breach of what an image promises is seen, and named."""

from __future__ import annotations

import gzip
import io
import json
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from chainctl.errors import MendFile
from chainctl.images.archive import pack, read_archive, render_tar
from chainctl.images.contract import archive_breaches, breaches, unlike_sbom
from chainctl.images.debian import assemble
from chainctl.images.image import verify_archive
from chainctl.images.lock import ImageKind
from chainctl.images.root import Node
from chainctl.images.sbom import Sbom, parse_sbom, render_sbom
from tests.unit.images.elves import elf
from tests.unit.images.test_archive import members as tar_members
from tests.unit.images.test_debian import package

LIBRARY = "usr/lib/x86_64-linux-gnu/libc.so.6"
PROGRAM = "usr/bin/wireguard-go"
SIGNED = "Sat, 12 Sep 2026 07:55:41 UTC"


def image() -> tuple[dict[str, Node], Sbom]:
    parts = [
        package("libc6", {f"./{LIBRARY}": elf()}),
        package(
            "wireguard-go",
            {
                f"./{PROGRAM}": elf(interpreter="/lib64/ld.so", needed=["libc.so.6"]),
                "./lib64/ld.so": elf(),
            },
        ),
    ]
    made = assemble(ImageKind.WIREGUARD, "amd64", parts)
    document = render_sbom(ImageKind.WIREGUARD, "amd64", SIGNED, made)
    return dict(made.root), parse_sbom(document)


def regular(mode: int, content: bytes = b"") -> Node:
    return Node(stat.S_IFREG | mode, content)


def test_what_the_builder_makes_keeps_the_contract() -> None:
    root, sbom = image()
    assert breaches(ImageKind.WIREGUARD, "amd64", root) == []
    assert unlike_sbom(root, sbom, ("libc6 1.0-1", "wireguard-go 1.0-1")) == []


Change = Callable[[dict[str, Node]], object]
BREACHES: dict[str, Change] = {
    "usr/bin/sh is named like a shell": lambda r: r.update({"usr/bin/sh": regular(0o644)}),
    "usr/bin/bash is named like a shell": lambda r: r.update(
        {"usr/bin/bash": Node(stat.S_IFLNK | 0o777, "wireguard-go")}
    ),
    "usr/bin/second can be executed, and is not the program": lambda r: r.update(
        {"usr/bin/second": regular(0o755, b"x")}
    ),
    f"{LIBRARY} can be executed, and is not the program": lambda r: r.update(
        {LIBRARY: regular(0o755, elf())}
    ),
    "etc/hook is a script": lambda r: r.update({"etc/hook": regular(0o644, b"#!/x")}),
    f"{PROGRAM} is set-user-id or set-group-id": lambda r: r.update(
        {PROGRAM: regular(0o4755, elf())}
    ),
    "usr/bin/gid is set-user-id or set-group-id": lambda r: r.update(
        {"usr/bin/gid": regular(0o2644)}
    ),
    "etc/passwd can be written by others than its owner": lambda r: r.update(
        {"etc/passwd": regular(0o664)}
    ),
    "run/open can be written by others than its owner": lambda r: r.update(
        {"run/open": Node(stat.S_IFDIR | 0o777)}
    ),
    "usr/lib/libspare.so is needed by nothing": lambda r: r.update(
        {"usr/lib/libspare.so": regular(0o644, elf())}
    ),
    "the library libc.so.6 is missing": lambda r: r.pop(LIBRARY),
    "/usr/bin/wireguard-go is missing": lambda r: r.pop(PROGRAM),
    "dev/sda is a device, a pipe or a socket": lambda r: r.update(
        {"dev/sda": Node(stat.S_IFBLK | 0o600)}
    ),
    "etc/away points to nothing": lambda r: r.update(
        {"etc/away": Node(stat.S_IFLNK | 0o777, "../../elsewhere")}
    ),
}


@pytest.mark.parametrize("words", BREACHES)
def test_a_breach_is_named(words: str) -> None:
    root, _ = image()
    BREACHES[words](root)
    assert words in breaches(ImageKind.WIREGUARD, "amd64", root)


def archive(tmp_path: Path, change: Callable[[dict[str, bytes]], object] | None = None) -> Path:
    root, _ = image()
    members = tar_members(pack(ImageKind.WIREGUARD, "amd64", root).data)
    if change:
        change(members)
    path = tmp_path / "image.tar"
    nodes = {name: regular(0o644, content) for name, content in members.items()}
    path.write_bytes(gzip.compress(render_tar(nodes)))
    return path


def named(members: dict[str, bytes], key: str) -> str:
    (listed,) = json.loads(members["manifest.json"])
    found: str = listed[key][0] if key == "Layers" else listed[key]
    return found


def test_an_archive_is_held_to_the_same_contract(tmp_path: Path) -> None:
    loaded = read_archive(archive(tmp_path))
    assert loaded.root == image()[0]
    assert archive_breaches(ImageKind.WIREGUARD, loaded) == []
    assert archive_breaches(ImageKind.PAUSE, loaded)[-1] == (
        "its Entrypoint is ['/usr/bin/wireguard-go'], not ['/usr/bin/catatonit', '-P']"
    )


def test_how_an_archive_says_it_is_run_is_checked(tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        config = json.loads(members[named(members, "Config")])
        config["config"] |= {"User": "0:0", "Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}}
        members[named(members, "Config")] = json.dumps(config).encode()

    breaches = archive_breaches(ImageKind.WIREGUARD, read_archive(archive(tmp_path, change)))
    assert breaches == [
        "its User is 0:0, not 65532:65532",
        "it sets Cmd",
        "it sets ExposedPorts",
    ]


def test_rights_beside_the_mode_are_seen_in_an_archive(tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("./usr/bin/ping")
            info.uid = 7
            info.pax_headers = {"SCHILY.xattr.security.capability": "x"}
            tar.addfile(info)
        members[named(members, "Layers")] = layer.getvalue()

    loaded = read_archive(archive(tmp_path, change))
    assert loaded.granted == [
        "usr/bin/ping belongs to the user 7",
        "usr/bin/ping carries capabilities",
    ]
    assert set(loaded.granted) <= set(archive_breaches(ImageKind.WIREGUARD, loaded))


@pytest.mark.parametrize("junk", [b"", b"PK", render_tar({}), render_tar({"a": regular(0o644)})])
def test_what_is_no_image_is_a_clear_error(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "junk"
    path.write_bytes(junk)
    with pytest.raises(MendFile, match="C712"):
        verify_archive(path, ImageKind.PAUSE)


UNLIKE: dict[str, Change] = {
    "etc/motd is not in the bill of materials": lambda r: r.update({"etc/motd": regular(0o644)}),
    "etc/group is missing": lambda r: r.pop("etc/group"),
    "etc/group is another file than the one in the bill of materials": lambda r: r.update(
        {"etc/group": regular(0o644, b"other")}
    ),
}


@pytest.mark.parametrize("words", UNLIKE)
def test_a_file_that_the_document_does_not_say_is_named(words: str) -> None:
    root, sbom = image()
    UNLIKE[words](root)
    assert unlike_sbom(root, sbom, sbom.packages) == [words]


def test_packages_other_than_the_pinned_are_named() -> None:
    root, sbom = image()
    assert unlike_sbom(root, sbom, ("libc6 1.0-1", "wireguard-go 1.1-1")) == [
        "wireguard-go 1.0-1 is not in both the lock and the bill of materials",
        "wireguard-go 1.1-1 is not in both the lock and the bill of materials",
    ]
