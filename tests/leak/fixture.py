"""The oracle as a pytest fixture. Import it in a `conftest.py` to have it.

A test that watches something and does not ask for the verdict itself is judged at its end;
a test that watches nothing is left alone, so that the fixture may be used by all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leak.oracle import Oracle

ROOMY = 32 << 20
"""Bytes a namespace: for the frames of all places while the machine does something else."""


@pytest.fixture
def roomy_oracle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Oracle]:
    """Judged only by who asks; import it `as oracle`."""
    with Oracle(tmp_path / "oracle", test=request.node.nodeid, ring_bytes=ROOMY) as one:
        yield one


@pytest.fixture
def oracle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Oracle]:
    with Oracle(tmp_path / "oracle", test=request.node.nodeid) as oracle:
        yield oracle
        if oracle.watching and oracle.verdict is None:
            oracle.judge().assert_clean()
