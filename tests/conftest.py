"""What all tests share: golden files, and `--update`, which writes them anew."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long one example takes says more about the machine's load than about the code.
settings.register_profile("chainctl", deadline=None)
settings.load_profile("chainctl")

# Chosen before there are workers, so that all of them have the same one, and say it in test names.
os.environ.setdefault("CHAINCTL_SEED", str(secrets.randbelow(1 << 31)))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell. What is ignored here the programs of the tests would ignore
    # too, and some are told to end by it; a function is not inherited.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)

Golden = Callable[[Path, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update", action="store_true", help="write golden files anew instead of comparing"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden(path, text)`: the file holds exactly this text."""
    update = bool(request.config.getoption("--update"))

    def check(path: Path, text: str) -> None:
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"no golden file {path.name} yet: run pytest --update and read it"
        assert text == path.read_text()

    return check
