"""Who is blamed when several hops are silent."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from chainctl.supervisor.sniffer import Reading
from chainctl.supervisor.suspicion import Behaviour
from chainctl.supervisor.verdict import outermost_dead

NOW = 1000.0
USUAL = Behaviour(0.03, 0.002)


def answering(last_heard: float = NOW - 0.1) -> Reading:
    return Reading(sent=50, heard=50, last_heard=last_heard, behaviour=USUAL)


def silent(since: float, *, until: float = NOW) -> Reading:
    """Asked in vain every 50 ms since `since`."""
    asked = tuple(since + step * 0.05 for step in range(math.ceil((until - since) / 0.05)))
    return Reading(
        sent=50 + len(asked),
        heard=50,
        last_heard=since - 0.2,
        silent_since=since,
        behaviour=USUAL,
        questions=asked[-64:],
        unanswered=len(asked),
    )


def test_nobody_is_blamed_while_all_answer() -> None:
    assert outermost_dead([answering(), answering()], NOW) is None
    assert outermost_dead([], NOW) is None


def test_one_dead_hop_is_found_wherever_it_is() -> None:
    for position in range(3):
        readings = [silent(NOW - 2) if hop >= position else answering() for hop in range(3)]
        assert outermost_dead(readings, NOW) == position


def test_a_hop_waits_for_one_outside_it_that_is_overdue() -> None:
    """It fell silent a moment later, so it is not yet sure that it is dead."""
    assert outermost_dead([silent(NOW - 0.3), silent(NOW - 2)], NOW) is None


def test_a_hop_is_not_blamed_before_those_outside_it_were_heard_since() -> None:
    unasked = answering(last_heard=NOW - 2)
    assert outermost_dead([unasked, silent(NOW - 2)], NOW) is None
    assert outermost_dead([answering(last_heard=NOW - 1.9), silent(NOW - 2)], NOW) == 1


def test_a_dead_hop_is_blamed_before_a_dead_one_inside_it() -> None:
    """Whichever fell silent first."""
    assert outermost_dead([answering(), silent(NOW - 3), silent(NOW - 4)], NOW) == 1


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 5.0)), max_size=6))
def test_whoever_is_blamed_has_only_answering_hops_outside(silences: list[float | None]) -> None:
    readings = [
        answering(NOW - 0.01) if silence is None else silent(NOW - silence) for silence in silences
    ]
    blamed = outermost_dead(readings, NOW)
    if blamed is None:
        return
    assert silences[blamed] is not None
    since = readings[blamed].silent_since
    assert all(outer.last_heard > since for outer in readings[:blamed])
    assert all(not outer.overdue(NOW) for outer in readings[:blamed])


def test_the_threshold_is_asked_about_the_silence() -> None:
    assert outermost_dead([silent(NOW - 0.5)], NOW) == 0
    assert outermost_dead([silent(NOW - 0.5)], NOW, threshold=200) is None
