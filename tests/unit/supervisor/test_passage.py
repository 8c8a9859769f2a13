"""What the counters of a tunnel say about its traffic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chainctl.host.counters import Counts
from chainctl.supervisor.passage import NOTHING_SEEN, Passage

steps = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 5)), min_size=1, max_size=40
)


def seen(*looks: tuple[int, int], asked: int = 0, outer: tuple[int, ...] = ()) -> Passage:
    """Looks at (received, sent), one a second from 100 on."""
    passage = NOTHING_SEEN
    for number, (received, sent) in enumerate(looks):
        link = Counts(outer[number], 0) if outer else None
        passage = passage.after(Counts(received, sent), link, asked=asked, now=100.0 + number)
    return passage


def test_what_is_sent_and_not_returned_adds_up() -> None:
    passage = seen((5, 5), (6, 10), (6, 14), (6, 20))
    assert passage.unreturned == 10
    assert passage.unreturned_since == 102.0
    assert passage.unreturned_for(103.5) == 1.5


def test_anything_received_ends_the_silence_and_is_dated_no_later_than_it_was() -> None:
    passage = seen((5, 5), (5, 10), (6, 14))
    assert passage.unreturned == 0
    assert passage.unreturned_for(200.0) == 0.0
    assert passage.last_received == 101.0


def test_our_own_questions_are_no_traffic() -> None:
    passage = seen((5, 5), (5, 7), (5, 9), asked=2)
    assert passage.unreturned == 0
    assert not passage.is_busy(102.0)


def test_a_tunnel_is_busy_for_a_while_after_traffic() -> None:
    passage = seen((0, 0), (0, 3))
    assert passage.is_busy(101.5)
    assert not passage.is_busy(102.5)
    assert not NOTHING_SEEN.is_busy(0.5)


def test_a_new_link_begins_anew() -> None:
    passage = seen((50, 50), (50, 90), (0, 3))
    assert passage.unreturned == 0
    assert passage.unreturned_since == 0.0
    gone = passage.after(None, None, asked=0, now=200.0)
    assert gone.after(Counts(0, 1), None, asked=0, now=201.0).unreturned == 0


def test_what_the_server_sends_outside_is_counted_while_nothing_comes_out() -> None:
    assert seen((5, 5), (5, 6), (5, 7), outer=(10, 12, 15)).outer_received == 5
    assert seen((5, 5), (5, 6), (6, 7), outer=(10, 12, 15)).outer_received == 0


@given(steps)
def test_silence_is_never_longer_than_nothing_came(moves: list[tuple[int, int, int]]) -> None:
    passage, received, sent, last = NOTHING_SEEN, 0, 0, 0.0
    for number, (more_in, more_out, asked) in enumerate(moves):
        now = 10.0 + number
        received, sent = received + more_in, sent + more_out
        passage = passage.after(Counts(received, sent), None, asked=asked, now=now)
        last = now if more_in else last
        assert passage.unreturned_for(now) <= now - last
        assert (passage.unreturned > 0) == (passage.unreturned_since > 0)
