"""Where packages come from, and that nothing is believed without its hash or signature.

The mirror is a web server of the test's own on the loopback device; apt's real downloader and
the real gpgv talk to it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chainctl.errors import ChainctlError
from chainctl.images.lock import Package
from chainctl.images.mirror import Index, fetch, parse_sources, read_index, read_mirrors

LIST = """\
# deb http://commented.invalid/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://one.invalid/debian/ bookworm main contrib # words
deb http://security.invalid/debian-security bookworm-security main
deb-src http://source.invalid/debian bookworm main
deb http://vendor.invalid/apt cloud-sdk-bookworm main
deb http://one.invalid/debian bookworm-updates main
"""
SOURCES = """\
Types: deb deb-src
# a comment
URIs: http://two.invalid/debian
 http://three.invalid/debian
Suites: trixie trixie-updates
Components: main

Types: deb
URIs: http://off.invalid/debian
Suites: trixie
Components: main
Enabled: no

Types: deb-src
URIs: http://source.invalid/debian
Suites: trixie
Components: main

Types: deb
URIs: http://security.invalid/debian-security
Suites: trixie-security
Components: main
"""


def test_mirrors_are_found_in_both_formats_and_other_archives_left_out() -> None:
    assert parse_sources([("sources.list", LIST), ("debian.sources", SOURCES)]) == [
        "http://one.invalid/debian",
        "http://two.invalid/debian",
        "http://three.invalid/debian",
    ]


def test_a_machine_without_a_debian_mirror_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ChainctlError, match="no Debian mirror") as caught:
        read_mirrors(tmp_path)
    assert caught.value.code == "C701"
    assert caught.value.hint


def test_an_index_gives_exactly_the_package_asked_for() -> None:
    text = (
        "Package: libc6-dev\nVersion: 9\nFilename: a\nSHA256: 1\n\n"
        "Package: libc6\nVersion: 2.41\nDescription: x\n more\nFilename: b\nSHA256: 2\n\n"
        "Package: last\nVersion: 3\nFilename: c\nSHA256: 3\n"
    )
    index = Index("today", text)
    assert index.package("libc6") == Package("libc6", "2.41", "b", "2")
    assert index.package("last") == Package("last", "3", "c", "3")
    with pytest.raises(ChainctlError, match="no package wireguard-go"):
        index.package("wireguard-go")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


@pytest.fixture
def mirror(served: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def pinned(content: bytes) -> Package:
    return Package("x", "1", "x.deb", hashlib.sha256(content).hexdigest())


def test_a_package_is_fetched_once_and_a_damaged_copy_again(
    served: Path, mirror: str, cache: Path
) -> None:
    (served / "x.deb").write_bytes(b"right")
    package = pinned(b"right")
    assert fetch(package, [mirror], cache) == b"right"
    (served / "x.deb").unlink()
    assert fetch(package, [mirror], cache) == b"right"
    (cache / package.sha256).write_bytes(b"bad")
    (served / "x.deb").write_bytes(b"right")
    assert fetch(package, [mirror], cache) == b"right"


def test_a_changed_package_is_refused_and_not_kept(served: Path, mirror: str, cache: Path) -> None:
    (served / "x.deb").write_bytes(b"wrong")
    with pytest.raises(ChainctlError) as caught:
        fetch(pinned(b"right"), [mirror], cache)
    assert caught.value.code == "C704"
    assert list(cache.iterdir()) == []


def test_the_next_mirror_is_asked_for_what_one_does_not_have(
    served: Path, mirror: str, cache: Path
) -> None:
    (served / "x.deb").write_bytes(b"right")
    assert fetch(pinned(b"right"), [f"{mirror}/empty", mirror], cache) == b"right"


def test_what_no_mirror_has_is_told_from_a_mirror_that_does_not_answer(
    mirror: str, cache: Path
) -> None:
    with pytest.raises(ChainctlError) as gone:
        fetch(pinned(b"right"), [mirror], cache)
    assert gone.value.code == "C705"
    with pytest.raises(ChainctlError) as silent:
        fetch(pinned(b"right"), ["http://user:word@127.0.0.1:9"], cache)
    assert silent.value.code == "C706"
    assert silent.value.transient
    assert "word" not in silent.value.message


@pytest.mark.parametrize(
    "release",
    [
        "Origin: Debian\nSHA256:\n",
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\n"
        "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n",
    ],
)
def test_an_index_without_debians_signature_is_refused(
    served: Path, mirror: str, release: str
) -> None:
    (served / "dists/trixie").mkdir(parents=True)
    (served / "dists/trixie/InRelease").write_text(release)
    with pytest.raises(ChainctlError) as caught:
        read_index([mirror], "trixie", "amd64")
    assert caught.value.code == "C703"
    assert "not signed by Debian" in caught.value.message
