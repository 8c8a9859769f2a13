"""How sure one may be that a hop is dead, and how soon."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.supervisor.suspicion import (
    DEAD,
    LOOKS_DEAD,
    NEVER_HEARD,
    OVERDUE,
    Behaviour,
    is_dead,
    looks_dead,
)
from tests.unit.supervisor.asking import detection, lossy, watch

rtts = st.floats(0.0005, 2.0)
histories = st.lists(st.tuples(rtts, st.integers(0, 70)), min_size=1, max_size=60)


def learned(*answers: tuple[float, int]) -> Behaviour:
    behaviour = NEVER_HEARD
    for rtt, lost in answers:
        behaviour = behaviour.after(rtt, lost)
    return behaviour


@given(histories, st.floats(0, 60), st.floats(0, 60))
def test_suspicion_never_shrinks_with_silence(
    history: list[tuple[float, int]], one: float, other: float
) -> None:
    behaviour = learned(*history)
    shorter, longer = sorted((one, other))
    assert behaviour.phi(shorter) <= behaviour.phi(longer)


@given(histories)
def test_a_silence_as_long_as_an_answer_usually_takes_is_no_suspicion(
    history: list[tuple[float, int]],
) -> None:
    behaviour = learned(*history)
    assert behaviour.phi(behaviour.mean) < 0.5
    assert behaviour.phi(behaviour.mean + 3600) > DEAD


@given(histories)
def test_every_hop_is_called_dead_in_the_end_and_at_first_none(
    history: list[tuple[float, int]],
) -> None:
    behaviour = learned(*history)
    assert is_dead(behaviour, silence=3600, overdue=64)
    assert not is_dead(behaviour, silence=3600, overdue=OVERDUE - 1)
    assert not is_dead(behaviour, silence=behaviour.mean, overdue=64)


def test_a_slow_hop_is_not_dead_after_what_would_kill_a_fast_one() -> None:
    dice = random.Random(1)
    slow = learned(*((dice.uniform(0.45, 0.55), 0) for _ in range(100)))
    fast = learned(*((dice.uniform(0.018, 0.022), 0) for _ in range(100)))
    assert not is_dead(slow, silence=0.7, overdue=64)
    assert slow.phi(0.7) < 3
    assert is_dead(fast, silence=0.7, overdue=64)


def test_the_estimates_follow_what_is_measured() -> None:
    behaviour = learned(*((0.1, 0) for _ in range(100)))
    assert behaviour.mean == pytest.approx(0.1, rel=0.01)
    assert behaviour.deviation < 0.01
    assert behaviour.loss == 0.0
    changed = learned(*((0.1, 0) for _ in range(100)), *((0.3, 1) for _ in range(100)))
    assert changed.mean == pytest.approx(0.3, rel=0.01)
    assert changed.loss == pytest.approx(0.5, abs=0.05)


def test_one_answer_moves_the_estimates_as_in_rfc_6298() -> None:
    moved = Behaviour(0.1, 0.04, 0.0, 0.1).after(0.9)
    assert moved.mean == pytest.approx(0.2)
    assert moved.deviation == pytest.approx(0.23)
    assert moved.usual == pytest.approx(0.1 + 0.8 / 256)


def test_more_has_to_be_overdue_where_more_is_lost() -> None:
    clean = learned(*((0.05, 0) for _ in range(100)))
    poor = learned(*((0.05, n % 2) for n in range(200)))
    assert clean.overdue == OVERDUE
    assert poor.overdue > OVERDUE
    assert 0.0 < poor.loss**poor.overdue < 2e-5


def test_a_hop_that_loses_nearly_all_can_still_be_called_dead() -> None:
    """The sniffer remembers some 64 questions."""
    assert learned(*((0.05, 1000) for _ in range(200))).overdue < 40


def test_the_first_answer_is_believed_at_once() -> None:
    assert NEVER_HEARD.after(0.2) == Behaviour(0.2, 0.1, 0.0, 0.2)
    assert 0.5 < NEVER_HEARD.late < 1.5


@given(st.lists(rtts, min_size=1))
def test_answers_that_waited_for_the_tunnel_are_believed_when_they_are_fast(
    waited: list[float],
) -> None:
    behaviour = NEVER_HEARD
    for rtt in waited:
        behaviour = behaviour.at_most(rtt)
    assert behaviour == learned((min(waited), 0))


def test_phi_is_the_chance_of_so_long_a_silence() -> None:
    """Of a normal distribution 0.13 % lie beyond 3 deviations, and 1e-9 beyond 6."""
    steady = Behaviour(1.0, 0.5)
    assert steady.phi(1.0) == pytest.approx(0.301, abs=0.001)
    assert steady.phi(2.5) == pytest.approx(2.870, abs=0.001)
    assert steady.phi(4.0) == pytest.approx(9.006, abs=0.001)
    assert is_dead(steady, silence=4.0, overdue=OVERDUE)
    assert not is_dead(steady, silence=3.5, overdue=OVERDUE)


def test_an_outage_is_not_remembered_as_loss() -> None:
    before = learned(*((0.05, 0) for _ in range(100)))
    after = before.after(0.05, 1000)
    assert after.loss < 0.2
    assert after.overdue <= OVERDUE + 1


@pytest.mark.parametrize(("rtt", "most"), [(0.002, 0.7), (0.04, 0.75), (0.2, 1.3)])
def test_a_dead_server_is_noticed(rtt: float, most: float) -> None:
    times = [detection(seed, rtt=rtt) for seed in range(40)]
    assert min(times) > rtt
    assert statistics.median(times) < most


@pytest.mark.parametrize("rtt", [0.002, 0.04, 0.5])
@pytest.mark.parametrize("loss", [0.0, 0.1, 0.2])
def test_ten_minutes_of_loss_kill_nobody(rtt: float, loss: float) -> None:
    for seed in range(3):
        dice = random.Random(seed)
        assert watch(lossy(dice, rtt=rtt, loss=loss), seconds=600, first=dice.random()) == []


def test_queues_that_fill_within_seconds_kill_nobody() -> None:
    dice = random.Random(7)
    base = lossy(dice, rtt=0.02, loss=0.02)

    def path(asked: float) -> float | None:
        answer = base(asked)
        return None if answer is None else answer + 0.2 * min(1.0, max(0.0, asked - 60) / 2)

    assert watch(path, seconds=120, first=0.0) == []


def test_doubt_wants_traffic_questions_and_time_all_in_vain() -> None:
    usual = learned(*((0.02, 0) for _ in range(100)))
    doubt = {"silence": usual.late, "unreturned": 10, "overdue": LOOKS_DEAD}
    assert looks_dead(usual, silence=usual.late, unreturned=10, overdue=LOOKS_DEAD)
    assert not looks_dead(usual, **{**doubt, "silence": usual.late - 0.001})  # type: ignore[arg-type]
    assert not looks_dead(usual, **{**doubt, "unreturned": 9})  # type: ignore[arg-type]
    assert not looks_dead(usual, **{**doubt, "overdue": LOOKS_DEAD - 1})  # type: ignore[arg-type]
    assert not looks_dead(NEVER_HEARD, silence=60.0, unreturned=1000, overdue=60)


@given(histories, st.floats(0, 5), st.integers(0, 64))
def test_whoever_is_dead_was_doubted_before(
    history: list[tuple[float, int]], silence: float, overdue: int
) -> None:
    behaviour = learned(*history)
    if is_dead(behaviour, silence=silence, overdue=overdue):
        assert looks_dead(behaviour, silence=silence, unreturned=10, overdue=overdue)
    assert behaviour.doubtful <= behaviour.overdue


def test_more_questions_make_a_doubt_where_more_is_lost() -> None:
    assert learned(*((0.05, 0) for _ in range(100))).doubtful == LOOKS_DEAD
    poor = learned(*((0.05, n % 2) for n in range(200)))
    assert poor.doubtful > LOOKS_DEAD
    assert poor.loss**poor.doubtful < 0.005
    assert poor.doubtful == pytest.approx(poor.overdue / 2, abs=1)


def test_nobody_is_dead_at_once_however_many_questions_were_asked() -> None:
    near = learned(*((0.001, 0) for _ in range(100)))
    assert near.phi(0.39) > DEAD
    assert not is_dead(near, silence=0.39, overdue=64)
    assert is_dead(near, silence=0.4, overdue=64)


def test_slow_is_what_was_faster_before() -> None:
    usual = learned(*((0.04, 0) for _ in range(300)))
    assert not usual.is_slow
    for _ in range(20):
        usual = usual.after(0.3)
    assert usual.is_slow
    assert not learned(*((0.5, 0) for _ in range(300))).is_slow
    barely = learned(*((0.002, 0) for _ in range(300)), *((0.1, 0) for _ in range(20)))
    assert not barely.is_slow, "a tenth of a second more is not worth a word"
    assert not Behaviour(0.9, 0.1, 0.0, 0.5).is_slow, "a long way may take longer"
    assert Behaviour(1.6, 0.1, 0.0, 0.5).is_slow
    for _ in range(1000):
        usual = usual.after(0.3)
    assert not usual.is_slow, "what lasts is usual"


def test_loss_of_a_question_and_its_answer_is_that_of_two_packets() -> None:
    assert Behaviour(0.1, 0.1, 0.19).one_way_loss == pytest.approx(0.1)
    assert Behaviour(0.1, 0.1, 1.0).one_way_loss == 1.0
    assert Behaviour(0.1, 0.1, 0.0).one_way_loss == 0.0
