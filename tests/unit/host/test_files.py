from __future__ import annotations

import os
from pathlib import Path

import pytest

from chainctl.errors import MendHost
from chainctl.host import files


def test_a_written_file_has_content_and_mode_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "state"
    files.write_atomic(target, b"old", 0o644)
    files.write_atomic(target, b"new", 0o640)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o7777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_reader_that_has_the_file_open_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "state"
    files.write_atomic(target, b"old")
    with target.open("rb") as reader:
        files.write_atomic(target, b"longer than before")
        assert reader.read() == b"old"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_atomic(target, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_directory_gets_its_mode_under_any_umask_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    before = os.umask(0o077)
    try:
        files.ensure_dir(folder, 0o755)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o7777 == 0o755
    files.ensure_dir(folder, 0o700)
    assert folder.stat().st_mode & 0o7777 == 0o700


def test_missing_data_says_which() -> None:
    with pytest.raises(MendHost, match="images/no-such-file") as caught:
        files.data_path("no-such-file")
    assert caught.value.code == "C307"
