"""Locks on directories, for those who start and stop the same client at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from chainctl.errors import LookAgain


@contextlib.contextmanager
def locked(folder: Path, mode: int, patience: float) -> Iterator[None]:
    """Hold a lock on the directory, made if need be. Raises LookAgain C544 if others hold it."""
    deadline = time.monotonic() + patience
    while (handle := _try_lock(folder, mode)) is None:
        if time.monotonic() >= deadline:
            raise LookAgain("C544", f"somebody else is busy in {folder}")
        time.sleep(0.005)
    try:
        yield
    finally:
        os.close(handle)


def _try_lock(folder: Path, mode: int) -> int | None:
    # It may go again at any moment, with the directory it is in; pathlib takes one that goes while
    # it looks for a file of that name.
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
        # Whoever held it before may have removed the directory, and another may be there now.
        if folder.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None
