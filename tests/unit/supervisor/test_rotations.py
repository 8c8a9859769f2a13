"""What a chain remembers of its servers, in a real journal."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from chainctl.model.chain import Chain, Slot
from chainctl.model.fault import Fault
from chainctl.model.independence import Independence, Trait
from chainctl.model.selection import HopSelection
from chainctl.spec.chain_file import load_chain_file
from chainctl.spec.model import ChainSpec, HopSpec, ServerProfile
from chainctl.store.journal import Journal
from chainctl.supervisor.choose import FORGOTTEN, HALF_LIFE, Strike
from chainctl.supervisor.guards import GuardState, confirmed, failed, retired, tried
from chainctl.supervisor.resolve import resolve, settle
from chainctl.supervisor.rotation import Rotations
from tests.unit.spec.builders import chain_text, profile, profile_text
from tests.unit.supervisor.test_resolve import FACTS

DAY = 86400.0


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


@pytest.fixture
def spec(tmp_path: Path) -> ChainSpec:
    """Two hops; each may use four servers, in networks of their own."""
    for number in range(1, 5):
        text = profile_text(endpoint=f"45.{number}.0.1:51820", address=f"10.64.0.{number}/32")
        (tmp_path / f"server{number}.conf").write_text(text)
    (tmp_path / "chain.yaml").write_text(chain_text(hops=2))
    return load_chain_file(tmp_path / "chain.yaml")


def server(number: int) -> IPv4Address:
    return IPv4Address(f"45.{number}.0.1")


def chain_with(spec: ChainSpec, guard: int, other: int) -> Chain:
    chosen = {"hop1": f"server{guard}", "hop2": f"server{other}"}
    selection = {name: HopSelection(servers={Slot.A: each}) for name, each in chosen.items()}
    return resolve(spec, replace(FACTS, selection=selection))


def since(journal: Journal, chain: Chain, seconds: float) -> None:
    entry = {hop.name: [hop.tunnel.server, time.time() - seconds] for hop in chain.hops}
    journal.remember("home", "since", entry)


def guards(journal: Journal, *, failed_ago: float, first_kept: bool = True) -> None:
    """Server 1 carried traffic and failed so long ago; server 2 carries it since."""
    dice, now = random.Random(1), time.time()
    state = GuardState()
    for number, before in ((1, 3 * DAY), (2, 2 * DAY)):
        state = tried(state, server(number), now - before)
        state = confirmed(state, server(number), keep=60 * DAY, now=now - before, dice=dice)
    state = failed(state, server(1), now - failed_ago)
    state = state if first_kept else retired(state, server(1))
    journal.remember("", "guards home", state.to_json())


def back(spec: ChainSpec, journal: Journal, chain: Chain) -> str | None:
    found = Rotations("home", journal).fail_back(spec, {}, chain)
    return f"{found[0].name} {found[1].server}" if found else None


def test_a_chain_returns_to_its_first_guard_once_both_had_their_time(
    spec: ChainSpec, journal: Journal
) -> None:
    chain = chain_with(spec, 2, 3)
    guards(journal, failed_ago=660)
    since(journal, chain, 601)
    assert back(spec, journal, chain) == "hop1 server1"
    since(journal, chain, 590)
    assert back(spec, journal, chain) is None, "it has not stayed long enough"
    since(journal, chain, 601)
    guards(journal, failed_ago=590)
    assert back(spec, journal, chain) is None, "the first one may not be tried yet"


def test_nobody_returns_to_a_guard_whose_time_is_over_or_that_serves_another_hop(
    spec: ChainSpec, journal: Journal
) -> None:
    guards(journal, failed_ago=660, first_kept=False)
    chain = chain_with(spec, 2, 3)
    since(journal, chain, 1000)
    assert back(spec, journal, chain) is None
    guards(journal, failed_ago=660)
    taken = chain_with(spec, 2, 1)
    since(journal, taken, 1000)
    assert back(spec, journal, taken) is None


def test_the_first_guard_itself_goes_nowhere(spec: ChainSpec, journal: Journal) -> None:
    guards(journal, failed_ago=660)
    chain = chain_with(spec, 1, 3)
    since(journal, chain, 1000)
    assert back(spec, journal, chain) is None


def test_a_hop_returns_to_the_server_it_prefers_if_the_rules_allow_it(
    spec: ChainSpec, journal: Journal
) -> None:
    wish = replace(spec.hops[1], prefer="server4")
    spec = replace(spec, hops=(spec.hops[0], wish))
    chain = chain_with(spec, 1, 3)
    since(journal, chain, 1000)
    assert back(spec, journal, chain) == "hop2 server4"
    Rotations("home", journal).blame(chain.hops[1], server(4), Fault.DEAD)
    assert back(spec, journal, chain) is None, "it failed a moment ago"
    journal.remember("", "strikes", {})
    assert back(spec, journal, chain_with(spec, 4, 3)) is None, "the guard is that server"


@pytest.mark.parametrize("hop", [0, 1])
def test_another_port_of_the_same_address_comes_last(
    spec: ChainSpec, journal: Journal, hop: int
) -> None:
    """Who is dead is so on every port, but somebody may block one of them."""
    serving = 1 + 2 * hop
    ports = [profile(f"p{port}", endpoint=f"45.{serving}.0.1:{port}") for port in (443, 53)]
    wish = spec.hops[hop]
    wish = replace(wish, pool=(*ports, *wish.pool))
    spec = replace(spec, hops=tuple(wish if n == hop else each for n, each in enumerate(spec.hops)))
    chain, rotations = chain_with(spec, 1, 3), Rotations("home", journal)

    def options(**how: Any) -> list[str]:
        found = rotations.options(spec, {}, chain.hops[hop], chain, **how)
        return [candidate.server for candidate in found.order]

    others = {"server2", "server4"}
    assert set(options()) == others
    assert set(options(any_port=True)[:2]) == others
    assert options(any_port=True)[2:] == ["p443", "p53"]
    assert options(to="p53", any_port=True) == ["p53"]
    assert options(to="p53") == []
    rotations.blame(chain.hops[1], server(2), Fault.DEAD)
    assert options(any_port=True)[2:] == ["p443", "p53"], "after those in quarantine"


def test_guards_are_remembered_when_the_chain_goes_down(spec: ChainSpec, journal: Journal) -> None:
    rotations, chain = Rotations("home", journal), chain_with(spec, 2, 3)
    rotations.carries(chain.hops[0], spec.hops[0])
    kept = journal.recall("", "guards home")
    assert kept
    journal.forget("home")
    assert journal.recall("", "guards home") == kept


def test_a_strike_says_why_and_is_forgotten_when_it_weighs_nothing(
    spec: ChainSpec, journal: Journal
) -> None:
    rotations, chain = Rotations("home", journal), chain_with(spec, 1, 2)
    long_ago = time.time() - 8 * HALF_LIFE
    assert Strike(1.0, long_ago).weight_at(time.time()) < FORGOTTEN
    journal.remember("", "strikes", {"45.9.0.1": [1.0, long_ago], "45.8.0.1": [1.0, time.time()]})
    rotations.blame(chain.hops[1], server(2), Fault.PAYLOAD)
    strikes = rotations.strikes()
    assert set(strikes) == {server(2), IPv4Address("45.8.0.1")}
    assert strikes[server(2)].why == "payload"


def test_a_doubt_uses_half_of_what_an_hour_allows(spec: ChainSpec, journal: Journal) -> None:
    rotations, chain = Rotations("home", journal), chain_with(spec, 1, 2)
    for _ in range(spec.rotation.per_hop_hour // 2):
        assert rotations.may_change(spec, chain.hops[1], share=2)
        rotations.changed(chain.hops[1])
    assert not rotations.may_change(spec, chain.hops[1], share=2)
    assert rotations.may_change(spec, chain.hops[1])


def test_a_spare_that_breaks_a_rule_is_let_go() -> None:
    pool = tuple(profile(name, endpoint=f"45.{n}.0.1:1") for n, name in enumerate("abcd", 1))
    near = profile("e", endpoint="45.1.9.9:1")
    base = _spec((*pool, near), pool)
    chosen = {
        "hop1": HopSelection(servers={Slot.A: "a"}),
        "hop2": HopSelection(servers={Slot.A: "b", Slot.B: "c"}),
    }
    kept = settle(base, {**chosen, "hop1": chosen["hop1"].with_candidate("e")}, {})
    assert kept["hop1"].servers == {Slot.A: "a", Slot.B: "e"}
    assert kept["hop2"].servers == {Slot.A: "b", Slot.B: "c"}
    strict = replace(
        base, independent=Independence(frozenset({Trait.SERVER, Trait.NETWORK}), frozenset())
    )
    both = {
        "hop1": chosen["hop1"].with_candidate("d"),
        "hop2": HopSelection(servers={Slot.A: "b", Slot.B: "d"}),
    }
    one = settle(strict, both, {})
    assert one["hop1"].servers == {Slot.A: "a", Slot.B: "d"}
    assert one["hop2"].servers == {Slot.A: "b"}, "the other hop has it already"
    swapped = {
        "hop1": HopSelection(servers={Slot.A: "c"}),
        "hop2": HopSelection(servers={Slot.A: "b", Slot.B: "a"}),
    }
    crossed = replace(strict, hops=(replace(strict.hops[0], pool=(*pool, near)), strict.hops[1]))
    assert settle(crossed, swapped, {})["hop2"].servers == {Slot.A: "b", Slot.B: "a"}
    swapped["hop1"] = HopSelection(servers={Slot.A: "e"})
    assert settle(crossed, swapped, {})["hop2"].servers == {Slot.A: "b"}, "one network"


def _spec(*pools: tuple[ServerProfile, ...]) -> ChainSpec:
    return ChainSpec(
        name="home",
        lans=(),
        wan=None,  # type: ignore[arg-type]
        dns_upstream=None,
        wires=IPv4Network("198.19.0.0/16"),
        hops=tuple(HopSpec(f"hop{n}", pool, line=1) for n, pool in enumerate(pools, 1)),
        file=Path("chain.yaml"),
    )


def test_the_first_guard_is_drawn_once_and_kept(spec: ChainSpec, tmp_path: Path) -> None:
    firsts = set()
    for number in range(40):
        journal = Journal(tmp_path / f"journal{number}.sqlite")
        order = Rotations("home", journal).first_guards(spec, {})
        assert set(order) == {server(each) for each in (1, 2, 3, 4)}
        assert Rotations("home", journal).first_guards(spec, {}) == order
        firsts.add(order[0])
        journal.close()
    assert len(firsts) == 4, "one of four never came first: 1 in 25 000 by chance"


def test_servers_named_one_by_one_are_used_in_that_order(spec: ChainSpec, journal: Journal) -> None:
    pool = tuple(reversed(spec.hops[0].pool))
    listed = replace(spec, hops=(replace(spec.hops[0], pool=pool, listed=True), spec.hops[1]))
    order = Rotations("home", journal).first_guards(listed, {})
    assert order == tuple(server(each) for each in (4, 3, 2, 1))


def test_a_guard_that_served_before_is_used_again(spec: ChainSpec, journal: Journal) -> None:
    rotations = Rotations("home", journal)
    rotations.carries(chain_with(spec, 3, 1).hops[0], spec.hops[0])
    assert rotations.first_guards(spec, {})[0] == server(3)


def test_no_other_guards_are_offered_once_the_budget_is_spent(
    spec: ChainSpec, journal: Journal
) -> None:
    few = replace(spec, rotation=replace(spec.rotation, guard_budget=2))
    rotations = Rotations("home", journal)
    drawn = rotations.first_guards(few, {})[:2]
    assert len(rotations.first_guards(few, {})) == 4
    for number in (1, 2, 3, 4):
        if server(number) in drawn:
            rotations.will_try(chain_with(spec, number, number % 4 + 1).hops[0], server(number))
    assert rotations.first_guards(few, {}) == drawn
