"""The guard stays, and only so many are ever tried."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainctl.supervisor.choose import Candidate
from chainctl.supervisor.guards import (
    PERIOD,
    Guard,
    Guards,
    GuardState,
    Uplink,
    choose_guards,
    confirmed,
    failed,
    retired,
    tried,
)

NOW = 1_000_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
KEEP = 30 * DAY


def server(number: int) -> Candidate:
    return Candidate(f"s{number}", IPv4Address((45 << 24) + (number << 16) + 1))


def pool_of(count: int) -> list[Candidate]:
    return [server(number) for number in range(count)]


class Chain:
    """A chain's guard over simulated time; `dead` servers are silent."""

    def __init__(self, pool: list[Candidate], *, budget: int = 4, seed: int = 0) -> None:
        self.pool = pool
        self.budget = budget
        self.dice = random.Random(seed)
        self.state = GuardState()
        self.now = NOW
        self.dead: set[IPv4Address] = set()
        self.asked: list[tuple[float, IPv4Address]] = []
        self.current: IPv4Address | None = None

    def guards(self, prefer: IPv4Address | None = None) -> Guards:
        found, self.state = choose_guards(
            self.state,
            self.pool,
            budget=self.budget,
            prefer=prefer,
            now=self.now,
            dice=self.dice,
        )
        return found

    def settle(self, uplink: Uplink = Uplink.PROVED) -> IPv4Address | None:
        """Use the first that answers, as a worker does; None: the chain stays shut."""
        if self.current is not None and self.current not in self.dead:
            silent = []
        else:
            silent = [self.current] if self.current is not None else []
            if not uplink.may_try:
                return None
        self._blame(silent, uplink)
        for candidate in self.guards().order:
            address = candidate.address
            self.asked.append((self.now, address))
            self.state = tried(self.state, address, self.now)
            if address not in self.dead:
                self._blame(silent, Uplink.PROVED)
                self.state = confirmed(self.state, address, keep=KEEP, now=self.now, dice=self.dice)
                self.current = address
                return address
            silent.append(address)
            self._blame(silent, uplink)
        return None

    def _blame(self, silent: list[IPv4Address], uplink: Uplink) -> None:
        if uplink.may_blame:
            while silent:
                self.state = failed(self.state, silent.pop(0), self.now)

    @property
    def addresses(self) -> list[IPv4Address]:
        return [candidate.address for candidate in self.pool]


seeds = st.integers(0, 2**32)
kills = st.lists(st.tuples(st.integers(0, 29), st.floats(0, 20 * DAY), st.booleans()), max_size=60)


@settings(max_examples=200)
@given(kills, st.integers(1, 6), st.integers(1, 30), seeds)
def test_no_order_of_failures_has_more_guards_asked_than_the_budget(
    faults: list[tuple[int, float, bool]], budget: int, size: int, seed: int
) -> None:
    chain = Chain(pool_of(size), budget=budget, seed=seed)
    chain.settle()
    for number, later, whole_pool_changes in faults:
        chain.now += later
        chain.dead ^= {server(number).address}
        if chain.current is not None and number % 2:
            chain.dead.add(chain.current)
        if whole_pool_changes:
            chain.pool = chain.dice.sample(pool_of(60), size)
        chain.settle()
    for end, _ in chain.asked:
        within = {address for when, address in chain.asked if end - PERIOD < when <= end}
        assert len(within) <= budget


def test_a_chain_whose_every_guard_fails_stays_shut_and_says_why() -> None:
    chain = Chain(pool_of(20), budget=4)
    chain.dead = set(chain.addresses)
    for _ in range(500):
        assert chain.settle() is None
        chain.now += 30.0
    assert len({address for _, address in chain.asked}) == 4
    spent = chain.guards().spent
    assert spent is not None
    assert (spent.used, spent.withheld) == (4, 16)
    assert spent.until == pytest.approx(NOW + 30 * DAY + PERIOD)
    assert spent.detail == (
        "4 servers were tried as guard within 60 days, which is the budget; 16 more are not tried"
    )


def test_guards_that_stay_dead_make_room_for_others_when_it_was_said() -> None:
    chain = Chain(pool_of(20), budget=2)
    chain.dead = set(chain.addresses)
    chain.settle()
    old = {address for _, address in chain.asked}
    spent = chain.guards().spent
    assert spent is not None
    chain.dead = old
    while chain.now < spent.until - DAY:
        assert chain.settle() is None
        chain.now += 6 * HOUR
    chain.now = spent.until + 12 * HOUR
    assert chain.settle() not in (None, *old)


def test_a_guard_that_answers_counts_for_sixty_days_after_its_last_use() -> None:
    chain = Chain(pool_of(20), budget=1)
    chain.settle()
    chain.now += DAY
    spent = chain.guards().spent
    assert spent is not None
    assert spent.until == NOW + PERIOD
    assert (spent.used, spent.withheld) == (1, 19)
    assert spent.detail.startswith("1 server was tried")


def test_the_only_server_is_never_given_up() -> None:
    chain = Chain(pool_of(1))
    only = chain.settle()
    chain.dead = set(chain.addresses)
    for _ in range(400):
        assert chain.settle() is None
        chain.now += 6 * HOUR
    chain.dead.clear()
    assert chain.settle() == only


def test_all_that_may_be_asked_are_asked_the_one_longest_untried_first() -> None:
    chain = Chain(pool_of(4), budget=4)
    chain.dead = set(chain.addresses)
    chain.settle()
    first = [address for _, address in chain.asked]
    assert sorted(first) == sorted(chain.addresses)
    chain.now += 5.0
    chain.state = failed(chain.state, first[0], chain.now)
    chain.now += 5.0
    assert [one.address for one in chain.guards().order] == [*first[1:], first[0]]
    assert chain.guards().spent is None, "no server of the pool is withheld"


@given(seeds, st.integers(1, 60), st.integers(1, 6), st.integers(1, 100))
def test_unrelated_servers_never_change_the_guard(
    seed: int, size: int, budget: int, added: int
) -> None:
    chain = Chain(pool_of(size), budget=budget, seed=seed)
    before = chain.settle()
    order = [one.address for one in chain.guards().order]
    chain.pool = [*(server(1000 + number) for number in range(added)), *chain.pool]
    chain.dice.shuffle(chain.pool)
    after = [one.address for one in chain.guards().order]
    assert after[: len(order)] == order
    assert chain.settle() == before


def test_every_server_is_drawn_as_often() -> None:
    """Chi-square with 9 degrees of freedom; 1 in 1 000 by chance."""
    firsts: Counter[IPv4Address] = Counter()
    pool = pool_of(10)
    for seed in range(5000):
        guards, _ = choose_guards(
            GuardState(), pool, budget=3, now=NOW, dice=random.Random(f"{seed}")
        )
        assert len(guards.order) == 3
        firsts[guards.order[0].address] += 1
    assert sum((firsts[one.address] - 500) ** 2 / 500 for one in pool) < 27.88


@pytest.mark.parametrize("uplink", [Uplink.FAULTY, Uplink.UNKNOWN])
def test_ten_thousand_looks_over_a_dead_line_change_and_strike_nobody(uplink: Uplink) -> None:
    chain = Chain(pool_of(20), budget=4)
    guard = chain.settle()
    chain.dead = set(chain.addresses)
    for _ in range(10_000):
        chain.now += 0.5
        assert chain.settle(uplink) is None
    assert all(one.failed is None for one in chain.state.sample)
    asked = {address for _, address in chain.asked}
    assert len(asked) == (1 if uplink is Uplink.FAULTY else 4)
    chain.dead.clear()
    assert chain.settle(uplink) == guard


def test_a_guard_that_once_served_is_taken_back_after_the_hold_down() -> None:
    chain = Chain(pool_of(10))
    first = chain.settle()
    assert first is not None
    chain.dead = {first}
    second = chain.settle()
    assert second not in (None, first)
    chain.dead.clear()
    chain.now += 9 * MINUTE
    assert chain.guards().order[0].address == second
    chain.now += 2 * MINUTE
    assert chain.guards().order[0].address == first
    assert chain.settle() == first
    assert chain.settle() == first, "and not sent behind the second for having been away"


def test_one_that_never_served_does_not_displace_one_that_did() -> None:
    chain = Chain(pool_of(10))
    unlucky = chain.guards().order[0].address
    chain.dead = {unlucky}
    second = chain.settle()
    chain.dead.clear()
    chain.now += 20 * DAY
    assert chain.settle() == second != unlucky


def test_one_that_keeps_failing_is_tried_more_and_more_rarely() -> None:
    chain = Chain(pool_of(10))
    first = chain.settle()
    assert first is not None
    begun = chain.now
    tries = []
    while chain.now < begun + 10 * DAY:
        chain.state = failed(chain.state, first, chain.now)
        tries.append(chain.now - begun)
        chain.now = chain.state.guard(first).retry_at()
    pauses = {later - sooner for sooner, later in itertools.pairwise(tries)}
    assert pauses == {10 * MINUTE, 90 * MINUTE, 4 * HOUR, 9 * HOUR}
    assert sum(when < 6 * HOUR for when in tries) == 36
    chain.state = confirmed(chain.state, first, keep=KEEP, now=chain.now, dice=chain.dice)
    assert chain.state.guard(first).retry_at() == 0.0


def test_a_server_that_leaves_the_pool_has_its_place_again_when_it_comes_back() -> None:
    chain = Chain(pool_of(10))
    first = chain.settle()
    whole = chain.pool
    chain.pool = [one for one in whole if one.address != first]
    second = chain.settle()
    assert second not in (None, first)
    assert chain.state.guard(IPv4Address(int(first or 0))).used is not None
    chain.pool = whole
    assert chain.settle() == first


def test_a_time_that_is_over_goes_to_the_next_of_the_sample() -> None:
    """Round and round within the sample: nobody new learns of the user."""
    chain = Chain(pool_of(30), budget=3)
    seen = []
    for _ in range(7):
        guard = chain.settle()
        assert guard is not None
        seen.append(guard)
        chain.state = retired(chain.state, guard)
        chain.now += KEEP
    assert len(set(seen[:3])) == 3
    assert seen[3:6] == seen[:3]
    assert seen[6] == seen[0]


def test_a_time_begins_up_to_a_tenth_too_early() -> None:
    begun = []
    for seed in range(400):
        state = confirmed(
            GuardState(), server(1).address, keep=KEEP, now=NOW, dice=random.Random(f"{seed}")
        )
        since = state.guard(server(1).address).since
        assert since is not None
        begun.append((NOW - since) / KEEP)
    assert 0.0 <= min(begun) < 0.005
    assert 0.095 < max(begun) <= 0.1
    again = confirmed(state, server(1).address, keep=KEEP, now=NOW + DAY, dice=random.Random(1))
    assert again.guard(server(1).address).since == since, "only once"
    assert again.guard(server(1).address).used == NOW + DAY


def test_what_the_user_prefers_comes_first_and_may_always_be_tried() -> None:
    chain = Chain(pool_of(20), budget=4)
    chain.dead = set(chain.addresses)
    chain.settle()
    chain.dead.clear()
    asked = {address for _, address in chain.asked}
    wish = next(address for address in chain.addresses if address not in asked)
    assert wish not in [one.address for one in chain.guards().order]
    order = chain.guards(prefer=wish).order
    assert order[0].address == wish
    assert len(order) == 5
    chain.state = tried(chain.state, wish, chain.now)
    assert wish in [guard.address for guard in chain.state.used(chain.now)]
    assert wish in [one.address for one in chain.guards().order], "it was tried in any case"
    gone = IPv4Address("45.99.0.1")
    assert len(chain.guards(prefer=gone).order) == 5


def test_one_chosen_by_hand_stays() -> None:
    chain = Chain(pool_of(20), budget=4)
    first = chain.settle()
    by_hand = next(a for a in chain.addresses if chain.state.guard(a) not in chain.state.sample)
    chain.state = confirmed(
        chain.state, by_hand, keep=KEEP, first=True, now=chain.now, dice=chain.dice
    )
    assert chain.settle() == by_hand != first
    back = chain.state.guard(first or by_hand)
    chain.state = confirmed(
        chain.state, back.address, keep=KEEP, first=True, now=chain.now, dice=chain.dice
    )
    assert chain.settle() == first


def test_the_guard_in_use_counts_however_long_ago_it_was_chosen() -> None:
    chain = Chain(pool_of(20), budget=1)
    first = chain.settle()
    assert first is not None
    chain.now += 3 * PERIOD
    chain.state = failed(chain.state, first, chain.now)
    chain.dead = {first}
    assert chain.settle() is None
    assert {address for _, address in chain.asked} == {first}


def test_an_empty_pool_has_no_guard() -> None:
    guards, state = choose_guards(GuardState(), [], budget=4, now=NOW, dice=random.Random("empty"))
    assert guards == Guards((), None)
    assert state == GuardState()


@given(seeds, st.integers(1, 20))
def test_the_state_survives_being_written_down(seed: int, size: int) -> None:
    chain = Chain(pool_of(size), seed=seed)
    chain.dead = {chain.addresses[0]}
    chain.settle()
    text = json.dumps(chain.state.to_json())
    assert GuardState.from_json(json.loads(text)) == chain.state


@pytest.mark.parametrize(
    "value", [None, [{}], [{"address": "x"}], [{"address": "1.2.3.4", "a": 1}]]
)
def test_what_was_not_written_by_us_is_refused(value: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        GuardState.from_json(value)


def test_only_a_proved_uplink_allows_blame() -> None:
    assert [uplink.may_blame for uplink in Uplink] == [False, False, True]
    assert [uplink.may_try for uplink in Uplink] == [False, True, True]
    assert Guard(server(1).address).retry_at() == 0.0
