"""Locks on directories that whoever holds them may remove."""

from __future__ import annotations

import contextlib
import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chainctl.runtime.locks import locked

_WORKERS, _TIMES = 4, 500


def test_a_directory_that_goes_while_others_want_it(tmp_path: Path) -> None:
    folder = tmp_path / "clients" / "one"
    held = []

    def use(_: int) -> None:
        with locked(folder, fcntl.LOCK_EX, 60.0):
            held.append(1)
            assert len(held) == 1
            held.pop()
            folder.rmdir()
            # The one of all clients goes when nobody has one in it.
            with contextlib.suppress(OSError):
                folder.parent.rmdir()

    with ThreadPoolExecutor(_WORKERS) as pool:
        assert len(list(pool.map(use, range(_WORKERS * _TIMES)))) == _WORKERS * _TIMES


def test_what_is_no_directory_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError), locked(file, fcntl.LOCK_EX, 60.0):
        pass
