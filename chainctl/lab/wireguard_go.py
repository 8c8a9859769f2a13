"""Finding a wireguard-go for the lab's servers, and how to start it."""

from __future__ import annotations

import shutil
from pathlib import Path

from chainctl.errors import MendHost

_IN_ROOT = Path("usr/bin/wireguard-go")


def find_wireguard_go(image_dir: Path) -> Path:
    """The one of the newest unpacked hop image, else the machine's. Raises MendHost C605."""
    built = sorted(image_dir.glob(f"*/rootfs/{_IN_ROOT}"), key=lambda path: path.stat().st_mtime_ns)
    if built:
        return built[-1]
    if installed := shutil.which("wireguard-go"):
        return Path(installed)
    raise MendHost(
        "C605", "there is no wireguard-go for the lab's servers", hint="chainctl images build"
    )


def command(path: Path) -> list[str]:
    """How to start it; the one in an unpacked root is run by that root's own loader."""
    path = path.resolve()
    root = path.parents[len(_IN_ROOT.parts) - 1]
    loaders = sorted(root.glob("lib*/ld-linux*.so.*"))
    if root == Path("/") or not loaders:
        return [str(path)]
    libraries = ":".join(str(folder) for folder in sorted(root.glob("usr/lib/*-linux-gnu*")))
    return [str(loaders[0]), "--library-path", libraries, str(path)]
