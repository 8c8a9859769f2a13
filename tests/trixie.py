"""Programs of Debian trixie that tests need and this machine's release lacks or has too old.

They are unpacked into `.make/trixie`, from packages under Debian's signature as for images, and
run by their own loader with their own libraries: nothing is installed, nothing here is replaced.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from chainctl.images.deb import Entry, Link, unpack
from chainctl.images.debian import closure
from chainctl.images.image import machine_arch
from chainctl.images.mirror import Index, fetch, read_index, read_mirrors

_KEPT = Path(__file__).parents[1] / ".make" / "trixie"


def program(package: str, path: str) -> list[str]:
    """How to start the program `path` of `package`; fetched when it is not there yet."""
    root = _KEPT / package
    if not root.exists():
        _unpack(package, path, root)
    loaders = sorted(root.glob("usr/lib/*/ld-linux*"))
    folders = sorted(root.glob("usr/lib/*-linux-gnu*"))
    return [str(loaders[0]), "--library-path", ":".join(map(str, folders)), f"{root}{path}"]


def _unpack(package: str, path: str, root: Path) -> None:
    tree: dict[str, Entry] = {}
    _KEPT.mkdir(parents=True, exist_ok=True)
    mirrors = read_mirrors(Path("/etc/apt"))
    with tempfile.TemporaryDirectory(dir=_KEPT) as folder:
        for name in _with_libraries(_index(), package):
            tree.update(unpack(fetch(_index().package(name), mirrors, Path(folder))))
        making = Path(folder) / "root"
        for one in closure(tree, path, machine_arch()):
            place, entry = making / one.strip("/"), tree[one]
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(entry, Link):
                place.symlink_to(entry.target)
            else:
                place.write_bytes(entry.content)
                place.chmod(0o755)
        shutil.copytree(making, root, symlinks=True)


@cache
def _index() -> Index:
    return read_index(read_mirrors(Path("/etc/apt")), "trixie", machine_arch())


def _with_libraries(index: Index, package: str) -> list[str]:
    """`package`, the C library, and every library any of them depends on."""
    fields = dict(re.findall(r"^Package: (\S+)\n(.*?)(?=^$|\Z)", index.text, re.M | re.S))
    found: dict[str, None] = {}
    waiting = [package, "libc6"]
    while waiting:
        name = waiting.pop()
        if name in found or name not in fields:
            continue
        found[name] = None
        depends = re.findall(r"^(?:Pre-)?Depends: (.*)$", fields[name], re.M)
        names = re.findall(r"(?:^|[,|]) *([a-z0-9][a-z0-9.+-]*)", ",".join(depends))
        waiting += [other for other in names if other.startswith("lib") or other == "zlib1g"]
    return list(found)
