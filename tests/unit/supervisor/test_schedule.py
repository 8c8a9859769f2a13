"""When servers are replaced that nothing is wrong with, and how often any may be."""

from __future__ import annotations

import random
from datetime import UTC, datetime, time
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.supervisor.schedule import SPACING, Quiet, due, may_rotate, next_rotation, pause

HOUR = 3600.0
BERN = ZoneInfo("Europe/Zurich")
OFFICE = Quiet(time(8), time(18), UTC)
NIGHT = Quiet(time(22), time(6), UTC)

dices = st.randoms(use_true_random=False)
moments = st.floats(1.6e9, 2.0e9)
times = st.times().map(lambda value: value.replace(microsecond=0))
quiets = st.builds(Quiet, times, times, st.sampled_from([UTC, BERN]))


def at(text: str, zone: ZoneInfo | None = None) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC).timestamp()


def drawn(
    dice: random.Random,
    *,
    rotate: tuple[float, float] | None = None,
    keep: float | None = None,
    since: float = 0.0,
    quiet: Quiet | None = None,
) -> float | None:
    return next_rotation(rotate=rotate, keep=keep, since=since, quiet=quiet, dice=dice)


@given(st.floats(60, 1e5), st.floats(0, 1e6), moments, dices)
def test_a_time_lies_in_the_range(
    shortest: float, more: float, since: float, dice: random.Random
) -> None:
    found = drawn(dice, rotate=(shortest, shortest + more), since=since)
    assert found is not None
    assert shortest - 1 <= found - since <= shortest + more + 1


def test_the_larger_of_two_draws_is_taken() -> None:
    """The mean of max(X, X) lies at two thirds of the range, and a quarter below its half."""
    dice = random.Random(4)
    lives = [drawn(dice, rotate=(6.0, 24.0)) or 0.0 for _ in range(8000)]
    assert sum(lives) / len(lives) == pytest.approx(6 + 18 * 2 / 3, abs=0.2)
    assert sum(life < 15 for life in lives) / len(lives) == pytest.approx(0.25, abs=0.02)


def test_keep_is_exact_and_nothing_means_never() -> None:
    dice = random.Random(1)
    assert drawn(dice, keep=HOUR, since=100.0) == 100.0 + HOUR
    assert drawn(dice, since=100.0) is None


@given(quiets, moments)
def test_quiet_hours_end_later_and_outside_themselves(quiet: Quiet, moment: float) -> None:
    end = quiet.ends(moment)
    assert moment <= end <= moment + 25 * HOUR
    assert quiet.ends(end) == end


@given(quiets, moments, dices)
def test_nothing_is_planned_for_quiet_hours(
    quiet: Quiet, moment: float, dice: random.Random
) -> None:
    found = drawn(dice, keep=0.0, since=moment, quiet=quiet)
    assert found is not None
    assert found >= moment
    assert quiet.ends(found) == found


@pytest.mark.parametrize(
    ("quiet", "moment", "ends"),
    [
        (OFFICE, "2026-11-21 07:59:59", "2026-11-21 07:59:59"),
        (OFFICE, "2026-11-21 08:00:00", "2026-11-21 18:00:00"),
        (OFFICE, "2026-11-21 17:59:59", "2026-11-21 18:00:00"),
        (OFFICE, "2026-11-21 18:00:00", "2026-11-21 18:00:00"),
        (NIGHT, "2026-11-21 21:00:00", "2026-11-21 21:00:00"),
        (NIGHT, "2026-11-21 22:00:00", "2026-11-22 06:00:00"),
        (NIGHT, "2026-12-31 23:00:00", "2027-01-01 06:00:00"),
        (NIGHT, "2027-01-01 05:00:00", "2027-01-01 06:00:00"),
        (Quiet(time(8), time(8), UTC), "2026-11-21 08:00:00", "2026-11-21 08:00:00"),
    ],
)
def test_quiet_hours(quiet: Quiet, moment: str, ends: str) -> None:
    assert quiet.ends(at(moment)) == at(ends)


def test_quiet_hours_follow_the_clock_on_the_wall() -> None:
    """The night in which summer ends has an hour more."""
    night = Quiet(time(0), time(6), BERN)
    assert night.ends(at("2026-10-25 00:00", BERN)) - at("2026-10-25 00:00", BERN) == 7 * HOUR
    assert night.ends(at("2026-10-26 00:00", BERN)) - at("2026-10-26 00:00", BERN) == 6 * HOUR


@pytest.mark.parametrize(
    ("moment", "minutes"),
    [
        ("2026-10-25 00:15:00", 75),  # 02:15 in summer; 02:30 comes again an hour later
        ("2026-10-25 01:15:00", 15),  # 02:15 again, in winter
        ("2027-03-28 00:45:00", 45),  # 01:45; there is no 02:30, so 03:30
    ],
)
def test_quiet_hours_that_end_where_the_clock_is_changed(moment: str, minutes: int) -> None:
    quiet = Quiet(time(1), time(2, 30), BERN)
    assert quiet.ends(at(moment)) - at(moment) == minutes * 60


def test_what_was_due_in_quiet_hours_is_spread_after_them() -> None:
    dice = random.Random(5)
    found = {drawn(dice, keep=0.0, since=at("2026-11-21 12:00"), quiet=OFFICE) for _ in range(50)}
    assert len(found) == 50


def test_nothing_is_spread_into_the_next_quiet_hours() -> None:
    nearly_always = Quiet(time(18, 10), time(18), UTC)
    dice = random.Random(8)
    for _ in range(50):
        found = drawn(dice, keep=0.0, since=at("2026-11-21 12:00"), quiet=nearly_always)
        assert found is not None
        assert nearly_always.ends(found) == found


@given(
    st.dictionaries(st.sampled_from(["guard", "middle", "exit"]), st.floats(0, 2000)),
    st.floats(0, 2000),
    st.floats(0, 2000),
    st.booleans(),
)
def test_one_hop_at_a_time_the_one_longest_due(
    planned: dict[str, float], now: float, last_change: float, busy: bool
) -> None:
    hop = due(planned, now=now, last_change=last_change, busy=busy, quiet=None)
    waiting = {name: when for name, when in planned.items() if when <= now}
    spaced = not 0 <= now - last_change < SPACING
    if busy or not spaced or not waiting:
        assert hop is None
    else:
        assert hop is not None
        assert waiting[hop] == min(waiting.values())


def test_hops_due_together_go_one_after_the_other() -> None:
    planned = {"guard": 1000.0, "middle": 1000.0, "exit": 999.0}
    changes = []
    last = 0.0
    for now in range(900, 1400):
        hop = due(planned, now=now, last_change=last, busy=False, quiet=None)
        if hop is not None:
            last = now
            changes.append((now, hop))
            del planned[hop]
    assert [hop for _, hop in changes] == ["exit", "guard", "middle"]
    assert [later - sooner for (sooner, _), (later, _) in pairwise(changes)] == [SPACING, SPACING]


def test_nothing_is_due_in_quiet_hours_however_late_it_is() -> None:
    planned = {"exit": at("2026-11-20 01:00")}
    for now, hop in (("12:00", None), ("18:00", "exit")):
        found = due(planned, now=at(f"2026-11-21 {now}"), last_change=0.0, busy=False, quiet=OFFICE)
        assert found == hop


@given(st.lists(st.tuples(st.floats(0, 20000), st.sampled_from(["a", "b", "c"])), max_size=200))
def test_no_hour_has_more_changes_than_allowed(wanted: list[tuple[float, str]]) -> None:
    done: list[tuple[float, str]] = []
    for moment, hop in sorted(wanted):
        if may_rotate(done, hop, now=moment, per_hop=6, per_chain=12):
            done.append((moment, hop))
    for end, _ in done:
        hour = [hop for moment, hop in done if end - HOUR < moment <= end]
        assert len(hour) <= 12
        assert all(hour.count(hop) <= 6 for hop in hour)


def test_a_cap_is_used_up_to_the_last_and_is_over_after_an_hour() -> None:
    history = [(float(n), "exit") for n in range(6)]
    assert may_rotate(history[:5], "exit", now=10.0, per_hop=6, per_chain=12)
    assert not may_rotate(history, "exit", now=10.0, per_hop=6, per_chain=12)
    assert may_rotate(history, "guard", now=10.0, per_hop=6, per_chain=12)
    assert not may_rotate(history, "guard", now=10.0, per_hop=6, per_chain=6)
    assert may_rotate(history, "exit", now=HOUR, per_hop=6, per_chain=12)


@given(st.integers(1, 10**6), dices)
def test_a_pause_has_bounds(attempt: int, dice: random.Random) -> None:
    assert 0.5 <= pause(attempt, dice) <= min(60.0, 2.0 ** min(attempt, 6))


def test_pauses_grow_and_are_spread_over_all_they_may_be() -> None:
    dice = random.Random(6)
    means = [sum(pause(n, dice) for _ in range(2000)) / 2000 for n in (1, 3, 5, 9)]
    assert means == sorted(means)
    assert means[-1] == pytest.approx(30, abs=2)
    many = [pause(9, dice) for _ in range(2000)]
    assert min(many) < 2
    assert max(many) > 58
