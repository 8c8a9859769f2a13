"""A bad line, a busy one, none at all, a silent resolver: no reason to change a server.

The labs run at once, the saturated one alone, since it takes all the machine has.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.troubles import SATURATED, TOGETHER, Found, Trouble, endure

pytestmark = [pytest.mark.root, pytest.mark.timeout(480)]

SECONDS = 120.0


@pytest.fixture(scope="module")
def found() -> dict[Trouble, Found]:
    """What came of those that go together."""
    with ThreadPoolExecutor(len(TOGETHER)) as pool:
        results = pool.map(lambda trouble: endure(trouble, SECONDS), TOGETHER)
        return dict(zip(TOGETHER, results, strict=True))


@pytest.mark.parametrize("trouble", TOGETHER, ids=lambda trouble: str(trouble.name))
def test_no_server_is_changed(found: dict[Trouble, Found], trouble: Trouble) -> None:
    judge(found[trouble])


def test_no_server_is_changed_on_a_saturated_line() -> None:
    found = endure(SATURATED, SECONDS)
    judge(found)
    assert sum(connection.echoed for connection in found.report.busy) > 10_000_000


def judge(found: Found) -> None:
    assert found.replaced == []
    assert found.after == found.before
    assert found.whole, found.events
    assert found.report.sent > 0
