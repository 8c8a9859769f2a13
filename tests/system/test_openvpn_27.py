"""The client of OpenVPN 2.7, which the pinned release of Debian does not have, in a chain.

Its image is made as the pinned one is, from packages of a newer suite, in a folder of its own.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from chainctl.images import shelf
from chainctl.images.debian import assemble, pin
from chainctl.images.image import _replacement, _texts, ensure_image, machine_arch
from chainctl.images.lock import ImageKind, load_lock, render_lock
from chainctl.images.mirror import fetch, read_index, read_mirrors
from chainctl.images.root import digest
from chainctl.lab.faults import Kind
from chainctl.settings import Settings
from tests.system.chain_lab import ChainLab, chain_lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SUITE = "forky"
KIND = ImageKind.OPENVPN
_KEPT = Path(__file__).parents[2] / ".make" / "openvpn-2.7"


@pytest.fixture(scope="module")
def image_dir() -> Path:
    """Holds an image of 2.7 in place of the pinned one, as when the pinned packages are gone."""
    arch = machine_arch()
    shipped = load_lock(arch)
    replacement = _replacement(KIND, shipped, _KEPT)
    if not replacement.exists():
        mirrors = read_mirrors(Path("/etc/apt"))
        with shelf.only_builder(_KEPT) as cache:
            lock = pin(read_index(mirrors, SUITE, arch), arch)
            packages = lock.images[KIND].packages
            made = assemble(KIND, arch, [(one, fetch(one, mirrors, cache)) for one in packages])
            name = digest(made.root)
            with shelf.writing(_KEPT):
                shelf.put(_KEPT / name, made.root, _texts(KIND, lock, made))
            replacement.write_text(render_lock(lock.with_digest(KIND, name)))
    ensure_image(ImageKind.WIREGUARD, Settings(image_dir=_KEPT))
    return _KEPT


def test_a_chain_of_clients_of_2_7(image_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over UDP and TCP, with tls-crypt, tls-auth and a login; servers fail, a client dies."""
    with chain_lab("fseven", via="udp,udp,tcp", spares=3, up=False) as chain:
        monkeypatch.setenv("CHAINCTL_IMAGE_DIR", str(image_dir))
        chain.up()
        assert versions(chain) == {"2.7"}
        assert chain.source() == str(chain.server("exit").plan.uplink.ip)
        for hop in ("guard", "exit"):
            result = chain.drill.run(Kind.FREEZE_SERVER, hop, seconds=20.0)
            assert result.replaced == (hop,), result.events
            assert result.seen.clean, result.seen
            assert chain.drill.wait_whole(time.time())
        assert chain.drill.run(Kind.KILL_CLIENT, "middle", seconds=20.0).whole
        assert versions(chain) == {"2.7"}


def versions(chain: ChainLab) -> set[str]:
    """Of the clients that run, as their logs begin."""
    logs = (chain.lab.home / "run/clients").glob("*/fs/log")
    lines = [line.split() for log in logs for line in log.read_text().splitlines()]
    found = {words[1] for words in lines if words[:1] == ["OpenVPN"] and words[1][0].isdigit()}
    return {".".join(version.split(".")[:2]) for version in found}
