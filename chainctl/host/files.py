"""The door to files: whole or not at all, with the rights they were asked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from chainctl.errors import MendHost

_PACKAGE = Path(__file__).resolve().parent.parent


def data_path(name: str) -> Path:
    """The shipped file `name` of the folder `images/`, for example a seccomp profile.

    A wheel carries that folder inside the package; a checkout has it beside it. Raises
    MendHost C307 when it is in neither.
    """
    for folder in (_PACKAGE / "images" / "data", _PACKAGE.parent / "images"):
        if (folder / name).exists():
            return folder / name
    raise MendHost(
        "C307", f"the file images/{name} is missing from this installation", hint="install it again"
    )


def write_atomic(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `content`; a reader, or a power cut, sees the old or the new whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)  # after the rename there is none
    _sync(path.parent)


def names_in(folder: Path, beginning: str = "") -> list[str]:
    """What is in it and begins so, sorted; nothing where there is no such folder.

    Compared and not matched: what begins a name may be anything that somebody has typed. Names
    and no paths, which take 30 times as long where there are 800.
    """
    try:
        found = os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name.startswith(beginning))


def ensure_dir(path: Path, mode: int = 0o700) -> None:
    """`path` is a directory with exactly these rights, whatever the umask; parents 0755."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.mkdir(exist_ok=True, mode=mode)
    if path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)


def _sync(folder: Path) -> None:
    # The rename itself is only durable once the directory is.
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
