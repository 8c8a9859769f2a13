"""Servers for all hops at once."""

from __future__ import annotations

import random
from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from chainctl.model.independence import Independence, Trait
from chainctl.supervisor.choose import Candidate, Strike
from chainctl.supervisor.path import NoPath, choose_path
from tests.unit.supervisor.test_choose import NOW, conflicts, rules, server, servers

few = st.lists(st.lists(servers, max_size=5), min_size=1, max_size=4)
many = st.lists(st.lists(servers, max_size=60), min_size=1, max_size=14)
ONLY_SERVER = Independence(frozenset({Trait.SERVER}), frozenset())


def choose(
    pools: list[list[Candidate]],
    wanted: Independence = ONLY_SERVER,
    *,
    kept: dict[int, Candidate] | None = None,
    seed: int = 0,
) -> tuple[Candidate, ...] | NoPath:
    dice = random.Random(seed)
    return choose_path(pools, kept=kept or {}, rules=wanted, strikes={}, now=NOW, dice=dice)


def allowed(path: tuple[Candidate, ...], required: frozenset[Trait]) -> bool:
    return not any(conflicts(one, other) & required for one, other in combinations(path, 2))


def exists(pools: list[list[Candidate]], required: frozenset[Trait]) -> bool:
    return any(allowed(path, required) for path in product(*pools))


@settings(max_examples=300)
@given(few, rules)
def test_a_path_is_found_when_there_is_one_else_the_first_unmet_rule(
    pools: list[list[Candidate]], wanted: Independence
) -> None:
    path = choose(pools, wanted)
    if not isinstance(path, NoPath):
        assert allowed(path, wanted.require)
        assert all(one in pool for one, pool in zip(path, pools, strict=True))
        return
    assert not exists(pools, wanted.require)
    if path.reason.rule is None:
        assert not pools[path.hop]
        return
    order = [trait for trait in Trait if trait in wanted.require]
    until = order[: order.index(path.reason.rule) + 1]
    assert not exists(pools, frozenset(until)), "there is a path with the named rule"
    assert exists(pools, frozenset(until[:-1])), "not the first rule that cannot be met"


@given(many, rules)
def test_long_chains_of_large_pools_end_in_time(
    pools: list[list[Candidate]], wanted: Independence
) -> None:
    path = choose(pools, wanted)
    if not isinstance(path, NoPath):
        assert allowed(path, wanted.require)


def test_a_hop_with_one_server_gets_it() -> None:
    one, other = server("45.1.0.1"), server("45.2.0.1")
    for seed in range(20):
        assert choose([[one, other], [one]], seed=seed) == (other, one)


@given(few, rules, st.integers(0, 3), st.data())
def test_what_is_kept_stays_when_a_path_exists_with_it(
    pools: list[list[Candidate]], wanted: Independence, number: int, data: st.DataObject
) -> None:
    hop = number % len(pools)
    if not pools[hop]:
        return
    kept = data.draw(st.sampled_from(pools[hop]))
    path = choose(pools, wanted, kept={hop: kept})
    with_it = [*pools[:hop], [kept], *pools[hop + 1 :]]
    if exists(with_it, wanted.require):
        assert not isinstance(path, NoPath)
        assert path[hop] == kept
    else:
        assert isinstance(path, NoPath) != exists(pools, wanted.require)


def test_the_guard_is_the_last_to_give_way() -> None:
    a, b, c = (server(f"45.{n}.0.1") for n in range(3))
    pools = [[a, b], [a, b, c], [c]]
    for seed in range(20):
        assert choose(pools, kept={0: a, 1: c, 2: c}, seed=seed) == (a, b, c)
        assert choose([[a, b], [a]], kept={0: a, 1: a}, seed=seed) == (b, a)


def test_struck_servers_are_avoided() -> None:
    a, b = server("45.1.0.1"), server("45.2.0.1")
    strikes = {a.address: Strike(1.0, NOW)}
    for seed in range(20):
        dice = random.Random(seed)
        found = choose_path(
            [[a, b]], kept={}, rules=ONLY_SERVER, strikes=strikes, now=NOW, dice=dice
        )
        assert found == (b,)


def test_who_serves_is_left_to_chance() -> None:
    pool = [server(f"45.{n}.0.1") for n in range(6)]
    found = {choose([pool, pool, pool], seed=seed) for seed in range(2000)}
    assert len(found) == 6 * 5 * 4
