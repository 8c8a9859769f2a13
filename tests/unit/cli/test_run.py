"""Whose rights `run` gives a program."""

from __future__ import annotations

import os
import pwd

import pytest

from chainctl.cli.run import _account
from chainctl.errors import MendFile


def test_who_called_sudo_is_whom_it_runs_as(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert _account(None) is None
    monkeypatch.setenv("SUDO_UID", str(os.getuid()))
    assert _account(None) == pwd.getpwuid(os.getuid())
    monkeypatch.setenv("SUDO_UID", "nonsense")
    assert _account("root") == pwd.getpwnam("root")


@pytest.mark.parametrize("uid", ["", "nonsense", "3999999999", "-7", "9" * 30, "9" * 5000])
def test_nobody_is_taken_for_a_user(monkeypatch: pytest.MonkeyPatch, uid: str) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    with pytest.raises(MendFile) as caught:
        _account(None)
    assert caught.value.code == "C565"


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(MendFile) as caught:
        _account("no such user")
    assert caught.value.code == "C565"
