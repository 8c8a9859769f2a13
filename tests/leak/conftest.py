from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.leak.chain_rig import ChainRig, lab_alone
from tests.leak.fixture import oracle
from tests.leak.wires import Wires, made

__all__ = ["oracle", "wires"]


@pytest.fixture
def wires() -> Iterator[Wires]:
    with made(f"oracle{os.getpid()}-") as wires:
        yield wires


@pytest.fixture(scope="session")
def running_chain() -> Iterator[ChainRig]:
    with lab_alone() as rig:
        rig.up()
        yield rig


@pytest.fixture
def chain(running_chain: ChainRig) -> ChainRig:
    """The chain that the tests share, whole and open when a test begins."""
    running_chain.settle()
    return running_chain


@pytest.fixture
def fresh() -> Iterator[ChainRig]:
    """A lab whose chain was never up."""
    with lab_alone() as rig:
        yield rig
