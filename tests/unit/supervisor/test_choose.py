"""Which servers may be chosen, in which order, and what is said when there is none."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainctl.model.independence import Independence, Trait
from chainctl.supervisor.choose import (
    HALF_LIFE,
    QUARANTINE,
    Candidate,
    NoCandidate,
    Strike,
    admissible,
    rank_servers,
)

NOW = 1_000_000.0
STRICT = Independence(frozenset(Trait), frozenset())
LAX = Independence(frozenset({Trait.SERVER}), frozenset(Trait) - {Trait.SERVER})

addresses = st.builds(
    lambda network, host: IPv4Address((45 << 24) + (network << 16) + host),
    st.integers(0, 20),
    st.integers(1, 12),
)
servers = st.builds(
    Candidate,
    server=st.sampled_from(["a-1", "b-2", "c-3"]),
    address=addresses,
    operator=st.sampled_from([None, "one", "two", "three"]),
    country=st.sampled_from([None, "se", "ch", "no"]),
    asn=st.sampled_from([None, 64500, 64501, 64502]),
)
pools = st.lists(servers, max_size=200)
paths = st.lists(servers, max_size=6)
rules = st.builds(
    lambda require, prefer: Independence(require | {Trait.SERVER}, prefer),
    st.frozensets(st.sampled_from(Trait)),
    st.frozensets(st.sampled_from(Trait)),
)
strike_lists = st.dictionaries(
    addresses, st.builds(Strike, st.floats(0, 8), st.floats(NOW - 3600, NOW)), max_size=60
)


def server(address: str, **labels: str) -> Candidate:
    return Candidate(address, IPv4Address(address), **labels)  # type: ignore[arg-type]


def conflicts(one: Candidate, other: Candidate) -> set[Trait]:
    """Written out once more, so that the rules are not tested with themselves."""
    found = set()
    if str(one.address) == str(other.address):
        found.add(Trait.SERVER)
    if str(one.address).split(".")[:2] == str(other.address).split(".")[:2]:
        found.add(Trait.NETWORK)
    for trait in (Trait.OPERATOR, Trait.COUNTRY, Trait.ASN):
        mine, theirs = getattr(one, trait.value), getattr(other, trait.value)
        if mine is not None and theirs is not None and mine == theirs:
            found.add(trait)
    return found


def of_path(candidate: Candidate, path: Iterable[Candidate]) -> set[Trait]:
    return {trait for other in path for trait in conflicts(candidate, other)}


@settings(max_examples=300)
@given(pools, paths, st.frozensets(addresses, max_size=3), rules)
def test_what_is_left_breaks_no_rule_or_the_first_unmet_one_is_named(
    pool: list[Candidate],
    path: list[Candidate],
    own: frozenset[IPv4Address],
    wanted: Independence,
) -> None:
    left = admissible(pool, path, own=own, rules=wanted)
    others = [candidate for candidate in pool if candidate.address not in own]
    whole = [one for one in others if not of_path(one, path) & wanted.require]
    if not isinstance(left, NoCandidate):
        assert list(left) == whole
        assert left
        return
    assert not whole
    if left.rule is None:
        assert not others
        return
    order = [trait for trait in Trait if trait in wanted.require]
    unmet = order.index(left.rule)
    until = set(order[: unmet + 1])
    assert all(of_path(one, path) & until for one in others), "the named rule leaves something"
    assert any(not of_path(one, path) & (until - {left.rule}) for one in others), "not the first"


@given(pools, paths, rules, strike_lists, st.randoms(use_true_random=False))
def test_ranking_keeps_every_server_and_sorts_by_quarantine_then_by_wishes(
    pool: list[Candidate],
    path: list[Candidate],
    wanted: Independence,
    strikes: dict[IPv4Address, Strike],
    dice: random.Random,
) -> None:
    left = admissible(pool, path, rules=wanted)
    ranked = rank_servers(pool, path, rules=wanted, strikes=strikes, now=NOW, dice=dice)
    if isinstance(left, NoCandidate):
        assert ranked == left
        return
    assert not isinstance(ranked, NoCandidate)
    assert Counter(ranked) == Counter(left)

    def rank(one: Candidate) -> tuple[float, int]:
        weight = strikes[one.address].weight_at(NOW) if one.address in strikes else 0.0
        return (weight if weight >= QUARANTINE else 0.0, len(of_path(one, path) & wanted.prefer))

    assert [rank(one) for one in ranked] == sorted(rank(one) for one in ranked)


def test_every_order_of_equals_comes_as_often() -> None:
    """Chi-square of the first, and of all 24 orders of four; 1 in 1 000 by chance."""
    pool = [server(f"45.{n}.0.1") for n in range(4)]
    dice = random.Random(2)
    firsts: Counter[str] = Counter()
    orders: Counter[tuple[str, ...]] = Counter()
    for _ in range(4800):
        ranked = rank_servers(pool, [], rules=LAX, strikes={}, now=NOW, dice=dice)
        assert not isinstance(ranked, NoCandidate)
        firsts[ranked[0].server] += 1
        orders[tuple(one.server for one in ranked)] += 1
    assert chi_square(firsts, 4) < 16.27
    assert chi_square(orders, 24) < 49.73


def chi_square(seen: Counter[str] | Counter[tuple[str, ...]], kinds: int) -> float:
    expected = seen.total() / kinds
    missing = (kinds - len(seen)) * expected
    return missing + sum((count - expected) ** 2 / expected for count in seen.values())


def test_a_wish_is_given_up_only_when_nothing_else_is_left() -> None:
    path = [server("45.1.0.1", country="se", operator="one")]
    near, same, other = (
        server("45.1.9.9", country="ch"),
        server("45.2.0.1", country="se", operator="one"),
        server("45.3.0.1", country="no"),
    )
    for seed in range(20):
        dice = random.Random(seed)
        ranked = rank_servers([same, near, other], path, rules=LAX, strikes={}, now=NOW, dice=dice)
        assert ranked == (other, near, same)


def test_a_struck_server_comes_last_however_well_it_fits_and_comes_back_in_time() -> None:
    path = [server("45.1.0.1")]
    near, far = server("45.1.0.2"), server("45.2.0.1")
    strike = Strike(0.0, NOW).another(NOW)
    for later, first in ((0.0, near), (HALF_LIFE, near), (HALF_LIFE * 1.01, far)):
        ranked = rank_servers(
            [near, far],
            path,
            rules=LAX,
            strikes={far.address: strike},
            now=NOW + later,
            dice=random.Random(3),
        )
        assert not isinstance(ranked, NoCandidate)
        assert ranked[0] == first, later


@given(st.floats(0, 20), st.floats(0, 7200))
def test_quarantine_ends_when_it_is_said_to(weight: float, later: float) -> None:
    strike = Strike(weight, NOW)
    left = strike.released_in(NOW + later)
    assert left >= 0
    assert strike.weight_at(NOW + later + left + 1) < QUARANTINE
    if left > 1:
        assert strike.weight_at(NOW + later + left - 1) > QUARANTINE
    assert (left > 0) == (strike.weight_at(NOW + later) > QUARANTINE)


def test_strikes_add_up_decay_by_half_and_survive_a_clock_set_back() -> None:
    strike = Strike(0.0, NOW).another(NOW).another(NOW)
    assert strike.weight_at(NOW) == 2.0
    assert strike.weight_at(NOW + HALF_LIFE) == 1.0
    assert strike.another(NOW + HALF_LIFE).weight_at(NOW + HALF_LIFE) == 2.0
    assert strike.weight_at(NOW - 86400) == 2.0


UNMET = [
    ([], [], "its pool is empty"),
    (["45.9.0.1"], [], "its pool has no other server"),
    (["45.1.0.1"], ["45.1.0.1"], "the only server left already serves another place of this chain"),
    (
        ["45.1.0.2", "45.1.0.3", "45.1.0.1"],
        ["45.1.0.1"],
        "each of 2 servers lies in the /16 network of another hop's server",
    ),
]


@pytest.mark.parametrize(("pool", "path", "words"), UNMET)
def test_what_cannot_be_met_is_said_in_words(pool: list[str], path: list[str], words: str) -> None:
    result = admissible(
        [server(address) for address in pool],
        [server(address) for address in path],
        own={IPv4Address("45.9.0.1")},
        rules=STRICT,
    )
    assert isinstance(result, NoCandidate)
    assert result.detail == words


def test_unknown_labels_are_shared_with_nobody() -> None:
    one, other = server("45.1.0.1"), server("45.2.0.1")
    assert admissible([one], [other], rules=STRICT) == (one,)


def test_a_chain_never_uses_a_server_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        Independence(frozenset({Trait.NETWORK}), frozenset())
