"""An image has the same bytes whoever builds it, where, when, and under which settings."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chainctl.images.image import ARCHES
from chainctl.images.lock import ImageKind

pytestmark = pytest.mark.root

NOBODY = "65534"
BUILD = """
import sys
from pathlib import Path
from chainctl.images.image import ensure_image, pack_image
from chainctl.images.lock import ImageKind
from chainctl.settings import Settings

for arch in sys.argv[1:]:
    for kind in ImageKind:
        image = ensure_image(kind, Settings.load(), arch=arch, locked=True)
        Path(f"{image.digest}.tar").write_bytes(pack_image(image).data)
"""


def build(folder: Path, *, prefix: tuple[str, ...] = (), umask: int, **env: str) -> None:
    subprocess.run(
        [*prefix, sys.executable, "-c", BUILD, *ARCHES],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "CHAINCTL_IMAGE_DIR": str(folder / "images"), **env},
        umask=umask,
        check=True,
    )


def everything(folder: Path) -> dict[str, str]:
    """Every file with its mode and hash, without the downloads."""
    found = {}
    for place in sorted(folder.rglob("*")):
        name = str(place.relative_to(folder))
        if name.startswith("images/cache") or name == "images":
            continue
        status = place.lstat()
        if place.is_symlink():
            content = str(place.readlink()).encode()
        else:
            content = place.read_bytes() if place.is_file() else b""
        mode = 0 if name.endswith(".tar") else status.st_mode
        found[name] = f"{mode:o} {hashlib.sha256(content).hexdigest()}"
    return found


def test_two_builders_get_the_same(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other/place"
    one.mkdir()
    build(one, umask=0o022, TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1")

    # The second one is another user, at another time as far as its inputs tell.
    (other / "images/cache").mkdir(parents=True)
    for package in (one / "images/cache").iterdir():
        kept = other / "images/cache" / package.name
        kept.write_bytes(package.read_bytes())
        os.utime(kept, (1e9, 1e9))
    for place in (other, *other.rglob("*")):
        os.chown(place, int(NOBODY), int(NOBODY))
    # It may read the checkout and the interpreter wherever they lie; it owns what it makes.
    prefix = (
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    )
    for place in other.parents:
        if place.is_relative_to(tmp_path):
            place.chmod(0o755)
    build(
        other, prefix=prefix, umask=0o077, TZ="Pacific/Kiritimati", LC_ALL="C.UTF-8",
        PYTHONHASHSEED="2", SOURCE_DATE_EPOCH="1",
    )  # fmt: skip

    built = everything(one)
    assert len([name for name in built if name.endswith(".tar")]) == len(ARCHES) * len(ImageKind)
    assert len([n for n in built if n.endswith("sbom.spdx.json")]) == len(ARCHES) * len(ImageKind)
    assert everything(other) == built
    assert {p.stat().st_uid for p in other.rglob("rootfs")} == {int(NOBODY)}
