from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.leak.fixture import oracle
from tests.leak.wires import Wires, made

__all__ = ["oracle", "wires"]


@pytest.fixture
def wires() -> Iterator[Wires]:
    with made(f"oracle{os.getpid()}-") as wires:
        yield wires
