"""The images, built from this machine's own Debian mirror."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from chainctl.errors import ChainctlError
from chainctl.images.image import (
    Image,
    ensure_image,
    executables,
    is_whole,
    list_images,
    machine_arch,
    pack_image,
    rebuild_if_damaged,
    verify_image,
)
from chainctl.images.lock import ImageKind, load_lock
from chainctl.images.mirror import read_mirrors
from chainctl.settings import Settings

pytestmark = pytest.mark.root


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(image_dir=tmp_path / "images")


@pytest.fixture
def image(settings: Settings) -> Image:
    return ensure_image(ImageKind.WIREGUARD, settings)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[ImageKind, Image]:
    """One of each kind, for tests that only look."""
    settings = Settings(image_dir=tmp_path_factory.mktemp("images"))
    return {kind: ensure_image(kind, settings) for kind in ImageKind}


@pytest.mark.parametrize("kind", ImageKind)
def test_the_image_is_what_the_lock_promises(
    built: dict[ImageKind, Image], kind: ImageKind
) -> None:
    image = built[kind]
    assert image.pinned
    assert image.digest == load_lock(machine_arch()).images[kind].digest
    assert is_whole(image)


@pytest.mark.parametrize("kind", ImageKind)
def test_the_image_keeps_its_contract(built: dict[ImageKind, Image], kind: ImageKind) -> None:
    image = built[kind]
    assert verify_image(image) == []
    document = parse_file(str(image.sbom))
    assert validate_full_spdx_document(document) == []
    licences = image.sbom.with_name("licences")
    assert {f"{p.name}" for p in licences.iterdir()} == {n.split()[0] for n in image.packages}
    assert all(p.stat().st_size > 500 for p in licences.iterdir())


PROGRAMS = {
    ImageKind.WIREGUARD: {"wireguard-go", "ld-linux-x86-64.so.2"},
    ImageKind.OPENVPN: {"openvpn", "ld-linux-x86-64.so.2"},
    ImageKind.PAUSE: {"catatonit"},
}


@pytest.mark.parametrize("kind", ImageKind)
def test_only_its_program_and_the_loader_can_be_executed(
    built: dict[ImageKind, Image], kind: ImageKind
) -> None:
    places = list(built[kind].root.rglob("*"))
    files = [p for p in places if stat.S_ISREG(p.lstat().st_mode)]
    assert {p.name for p in files if p.stat().st_mode & 0o111} == PROGRAMS[kind]
    assert {Path(p).name for p in executables(built[kind])} == PROGRAMS[kind]
    assert not {p.name for p in places} & {"sh", "bash", "dash", "busybox"}
    assert all(p.lstat().st_mode & 0o6022 == 0 for p in files)
    assert all(p.lstat().st_uid == 0 for p in places)


SAYS_ITS_VERSION = {
    ImageKind.WIREGUARD: ("wireguard-go ", 0),
    ImageKind.OPENVPN: ("OpenVPN 2.6.", 0),
    ImageKind.PAUSE: ("tini version ", 0),
}


@pytest.mark.parametrize("kind", ImageKind)
def test_its_program_runs_with_nothing_but_the_image(
    built: dict[ImageKind, Image], kind: ImageKind
) -> None:
    image = built[kind]
    said = subprocess.run(
        ["chroot", str(image.root), image.entrypoint[0], "--version"],
        capture_output=True,
        text=True,
    )
    begins, status = SAYS_ITS_VERSION[kind]
    assert said.stdout.startswith(begins), said
    assert said.returncode == status


def test_many_builders_at_once_end_with_one_image(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        images = set(pool.map(lambda _: ensure_image(ImageKind.WIREGUARD, settings), range(8)))
    assert len(images) == 1
    assert {p.name for p in settings.image_dir.iterdir()} == {"cache", images.pop().digest}


def test_what_an_interrupted_build_left_does_no_harm(image: Image, settings: Settings) -> None:
    half = settings.image_dir / f".{image.digest}"
    image.root.parent.rename(half)
    (half / "manifest.json").unlink()
    (settings.image_dir / "cache" / "abc.arriving").touch()
    again = ensure_image(ImageKind.WIREGUARD, settings)
    assert is_whole(again)
    assert not half.exists()
    assert not list(settings.image_dir.glob("cache/*.arriving"))


def test_rights_beside_the_mode_are_seen(image: Image) -> None:
    library = image.root / "usr/lib/x86_64-linux-gnu/libc.so.6"
    # CAP_NET_RAW, permitted and effective (struct vfs_cap_data, linux/capability.h).
    os.setxattr(library, "security.capability", struct.pack("<IIIII", 0x2000001, 1 << 13, 0, 0, 0))
    os.chown(image.root / "etc/passwd", 7, 7)
    assert verify_image(image) == [
        "etc/passwd belongs to the user 7",
        "usr/lib/x86_64-linux-gnu/libc.so.6 carries capabilities",
    ]


@pytest.mark.parametrize("damage", ["content", "mode", "extra", "missing"])
def test_damage_is_seen_and_repaired(image: Image, settings: Settings, damage: str) -> None:
    program = image.root / "usr/bin/wireguard-go"
    if damage == "content":
        with program.open("r+b") as file:
            file.write(b"x")
    elif damage == "mode":
        program.chmod(0o4755)
    elif damage == "extra":
        (image.root / "usr/bin/sh").touch()
    else:
        program.unlink()
    assert not is_whole(image)
    assert verify_image(image)
    with pytest.raises(ChainctlError, match="C711"):
        pack_image(image)
    assert is_whole(rebuild_if_damaged(image, settings))
    assert [i.digest for i in list_images(settings)] == [image.digest]


class PointRelease(BaseHTTPRequestHandler):
    """A mirror that has lost every package, until its index is asked for."""

    real = ""
    indexed = threading.Event()

    def do_GET(self) -> None:
        if self.path.startswith("/dists/"):
            self.indexed.set()
        self.send_response(302 if self.indexed.is_set() else 404)
        self.send_header("Location", f"{self.real}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def apt(tmp_path: Path) -> Iterator[Path]:
    """apt's settings on a machine whose mirror has passed on to the next point release."""
    PointRelease.real = read_mirrors(Path("/etc/apt"))[0]
    PointRelease.indexed.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), PointRelease)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    folder = tmp_path / "apt"
    folder.mkdir()
    address = f"http://127.0.0.1:{server.server_port}"
    (folder / "sources.list").write_text(f"deb {address} bookworm main\n")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_when_the_pins_are_gone_the_signed_index_is_asked(settings: Settings, apt: Path) -> None:
    image = ensure_image(ImageKind.WIREGUARD, settings, apt=apt)
    assert not image.pinned
    assert is_whole(image)
    assert len(list(settings.image_dir.glob("instead-of-*.lock.json"))) == 1


def test_locked_refuses_anything_but_the_pins(settings: Settings, apt: Path) -> None:
    with pytest.raises(ChainctlError) as caught:
        ensure_image(ImageKind.WIREGUARD, settings, locked=True, apt=apt)
    assert caught.value.code == "C705"
    assert "--locked" in caught.value.hint
    assert not PointRelease.indexed.is_set()
    assert list_images(settings) == []


def test_an_image_directory_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ChainctlError) as caught:
        ensure_image(ImageKind.WIREGUARD, Settings(image_dir=tmp_path / "file"))
    assert caught.value.code == "C710"


def test_downloads_are_kept_under_their_hash(image: Image, settings: Settings) -> None:
    for kept in (settings.image_dir / "cache").iterdir():
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == kept.name
