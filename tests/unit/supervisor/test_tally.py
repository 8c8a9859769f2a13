"""Loss is said over some minutes, not since ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chainctl.supervisor.tally import MINUTES, Tally


def test_what_is_older_than_the_minutes_is_forgotten() -> None:
    tally = Tally()
    for second in range(120):
        tally.asked(second)
    assert tally.over(119) == (120, 0)
    assert tally.over(MINUTES * 60 - 1) == (120, 0)
    assert tally.over(MINUTES * 60) == (60, 0)
    assert tally.over(MINUTES * 60 + 60) == (0, 0)


def test_what_was_another_hops_fault_is_no_loss() -> None:
    tally = Tally()
    for second in range(50, 70):
        tally.asked(second)
        if second < 55:
            tally.heard(second)
    tally.excuse(15)
    assert tally.over(70) == (5, 5)
    tally.excuse(15)
    assert tally.over(70) == (5, 5)


@given(st.lists(st.tuples(st.floats(0, 3000), st.booleans()), max_size=80))
def test_it_counts_what_a_list_would(events: list[tuple[float, bool]]) -> None:
    tally, now = Tally(), 0.0
    events.sort()
    for now, answered in events:
        (tally.heard if answered else tally.asked)(now)
    recent = [each for at, each in events if int(at // 60) > int(now // 60) - MINUTES]
    assert tally.over(now) == (recent.count(False), recent.count(True))
