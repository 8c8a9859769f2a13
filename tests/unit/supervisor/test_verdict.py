"""Who is blamed when several hops are silent."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.fault import Fault, Said
from chainctl.supervisor.passage import Passage
from chainctl.supervisor.sniffer import Reading
from chainctl.supervisor.suspicion import Behaviour
from chainctl.supervisor.verdict import (
    RECEIVES,
    Evidence,
    is_failing,
    judge_answering,
    judge_silent,
    outermost_dead,
    outermost_failing,
)

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


def test_a_hop_that_is_not_asked_does_not_fail() -> None:
    """Those outside the exit are left in peace while it answers, and are silent meanwhile."""
    assert not is_failing(answering(last_heard=NOW - 9), NOW)
    just_asked = replace(answering(last_heard=NOW - 9), silent_since=NOW - 1.9, unanswered=3)
    assert not is_failing(just_asked, NOW)
    assert is_failing(just_asked, NOW + 0.1)
    through_a_hop_inside = replace(just_asked, last_heard=NOW - 1)
    assert not is_failing(through_a_hop_inside, NOW + 0.1)


def test_a_hop_never_heard_fails() -> None:
    assert is_failing(Reading(), NOW)
    assert is_failing(Reading(sent=1, unanswered=1, silent_since=NOW - 0.1), NOW)


def test_the_outermost_of_those_that_are_silent_is_named() -> None:
    """The exit was asked first, the others only when it was overdue."""
    assert (
        outermost_failing(enumerate([answering(), silent(NOW - 1.7), silent(NOW - 2.1)]), NOW) == 1
    )
    assert outermost_failing(enumerate([answering(), answering(), silent(NOW - 2.1)]), NOW) == 2
    assert (
        outermost_failing(enumerate([answering(), silent(NOW - 1.7), silent(NOW - 1.9)]), NOW)
        is None
    )
    one_lost = replace(answering(), silent_since=NOW - 0.2, questions=(NOW - 0.2,), unanswered=1)
    assert outermost_failing(enumerate([one_lost, silent(NOW - 2.1)]), NOW) == 1
    assert outermost_failing(enumerate([]), NOW) is None


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


def test_silence_counts_from_when_the_hop_outside_came_back() -> None:
    """Whatever was asked before could not be answered."""
    dead = silent(NOW - 10)
    for ago, blamed in ((0.01, None), (0.2, None), (1.0, 1), (20.0, 1)):
        back = replace(answering(), back_since=NOW - ago)
        assert outermost_dead([back, dead], NOW) == blamed, ago
        assert outermost_dead([answering(), back, dead], NOW) == (blamed and 2), ago
    own = replace(dead, back_since=NOW - 10.2)
    assert outermost_dead([own], NOW) == 0, "its own return says nothing about its silence"


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


def receiving(reading: Reading, at: float = NOW) -> Reading:
    return replace(reading, passage=Passage(looked=at, last_received=at))


def test_a_hop_that_receives_is_spared_for_a_while() -> None:
    assert outermost_dead([silent(NOW - 1)], NOW) == 0
    assert outermost_dead([receiving(silent(NOW - 1))], NOW) is None
    assert outermost_dead([receiving(silent(NOW - 1), NOW - 0.5)], NOW) == 0, "that is too old"
    assert outermost_dead([receiving(silent(NOW - RECEIVES))], NOW) == 0, "one way is not enough"


def evidence(reading: Reading, **more: object) -> Evidence:
    return replace(Evidence(reading, NOW, outer="guard"), **more)  # type: ignore[arg-type]


OLD = silent(NOW - 10)
NEVER = Reading(sent=3, unanswered=3)
SENT_IN = replace(OLD, passage=Passage(looked=NOW, outer_received=1000))

SILENT = [
    ("uplink", evidence(OLD, uplink="eth0 is not connected", said=Said(Fault.AUTH, "no")), "eth0"),
    ("auth", evidence(OLD, said=Said(Fault.AUTH, "refused the login")), "refused the login; 200"),
    ("refused", evidence(OLD, said=Said(Fault.REFUSED, "hung up")), "hung up; 200 sent"),
    ("one-way", evidence(receiving(OLD)), "packets come in but none gets out: 200 sent"),
    ("payload", evidence(OLD, handshake_age=3.0, says_handshakes=True), "shakes hands but"),
    ("payload", evidence(SENT_IN), "its server sends something but carries no packets"),
    ("dead", evidence(SENT_IN, shares_link=True), "200 sent, 0 heard for 10.2 s; guard is fine"),
    ("dead", evidence(OLD, handshake_age=60.0, says_handshakes=True), "200 sent, 0 heard"),
    ("dead", evidence(OLD, says_handshakes=True), "200 sent, 0 heard for 10.2 s; guard is fine"),
    ("dead", evidence(NEVER, says_handshakes=True), "never shook hands: no server there, or not"),
    ("dead", evidence(OLD, outer=""), "200 sent, 0 heard for 10.2 s"),
    ("dead", evidence(NEVER), "3 sent, nothing heard yet; guard is"),
]


@pytest.mark.parametrize(("fault", "known", "words"), SILENT)
def test_a_silence_has_a_class_and_a_sentence(fault: str, known: Evidence, words: str) -> None:
    verdict = judge_silent(known)
    assert verdict.fault.value == fault
    assert words in verdict.text


def test_a_guard_has_nobody_outside_that_is_fine() -> None:
    assert judge_silent(evidence(OLD, outer="")).text == "200 sent, 0 heard for 10.2 s"


def test_silences_that_are_just_beginning_are_not_one_way() -> None:
    fresh = receiving(silent(NOW - RECEIVES + 0.1))
    assert judge_silent(evidence(fresh)).fault is Fault.DEAD
    assert judge_silent(evidence(receiving(silent(NOW - RECEIVES)))).fault is Fault.ONE_WAY


def test_what_a_server_sends_has_to_be_more_than_what_was_on_its_way() -> None:
    def fault(arrived: int, unanswered: int) -> Fault:
        reading = replace(OLD, unanswered=unanswered, passage=Passage(outer_received=arrived))
        return judge_silent(evidence(reading)).fault

    assert fault(20, 20) is Fault.PAYLOAD
    assert fault(19, 20) is Fault.DEAD
    assert fault(3, 1) is Fault.PAYLOAD
    assert fault(2, 1) is Fault.DEAD
    assert fault(0, 0) is Fault.DEAD


def test_only_a_handshake_after_the_silence_began_says_something() -> None:
    def judged(age: float | None, says: bool = True, reading: Reading = OLD) -> str:
        known = evidence(reading, handshake_age=age, says_handshakes=says)
        return judge_silent(known).text

    assert judged(9.9).startswith("shakes hands but")
    assert not judged(10.0).startswith("shakes hands")
    assert "never shook hands" in judged(None, reading=NEVER)
    assert "never shook hands" not in judged(None, says=False, reading=NEVER)
    assert "never shook hands" not in judged(None), "it did, before it was begun anew"
    assert "never shook hands" not in judged(60.0)


def test_what_answers_can_be_lossy_or_slow_or_fine() -> None:
    def judge(behaviour: Behaviour, allowed: float = 0.2) -> Fault | None:
        known = evidence(replace(answering(), behaviour=behaviour), loss_allowed=allowed)
        verdict = judge_answering(known)
        return verdict.fault if verdict else None

    assert judge(USUAL) is None
    assert judge(Behaviour(0.03, 0.01, 0.5, 0.03)) is Fault.LOSSY
    assert judge(Behaviour(0.03, 0.01, 0.35, 0.03)) is None, "some 19 % each way"
    assert judge(Behaviour(0.03, 0.01, 0.35, 0.03), 0.1) is Fault.LOSSY
    assert judge(Behaviour(0.9, 0.01, 0.0, 0.03)) is Fault.SLOW
    assert judge(Behaviour(0.03, 0.01, 0.36, 0.03)) is None, "as much as is allowed is allowed"
    slow = judge_answering(evidence(replace(answering(), behaviour=Behaviour(0.9, 0.0, 0, 0.03))))
    assert slow is not None
    assert slow.text == "answers take 900 ms instead of 30 ms"
    poor = replace(answering(), behaviour=Behaviour(0.03, 0.0, 0.75, 0.03))
    lost = judge_answering(evidence(poor, loss_allowed=0.2))
    assert lost is not None
    assert lost.text == "loses 50 % of its packets each way"
    lossy = judge_answering(evidence(replace(answering(), behaviour=Behaviour(0.03, 0, 0.75))))
    assert lossy is None, "nothing is said of loss where any is allowed"


def test_every_class_has_a_code_of_its_own_in_the_documentation() -> None:
    codes = [fault.code for fault in Fault]
    assert len(set(codes)) == len(codes)
    text = (Path(__file__).parents[3] / "docs/health.md").read_text()
    for fault in Fault:
        assert f"| `{fault.value}` | {fault.code} |" in text, fault
