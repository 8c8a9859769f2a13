"""The oracle as a pytest fixture. Import it in a `conftest.py` to have it.

A test that watches something and does not ask for the verdict itself is judged at its end;
a test that watches nothing is left alone, so that the fixture may be used by all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leak.oracle import Oracle


@pytest.fixture
def oracle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Oracle]:
    with Oracle(tmp_path / "oracle", test=request.node.nodeid) as oracle:
        yield oracle
        if oracle.watching and oracle.verdict is None:
            oracle.judge().assert_clean()
