"""Seeded bugs: each is found by the checks that the real plan and layout pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from chainctl.model.chain import Chain
from chainctl.model.parts import (
    HOST,
    PANEL,
    Client,
    FarEnd,
    Leg,
    NftTable,
    Part,
    PortFilter,
    PortName,
    PortRow,
    Route,
    Rule,
    Tun,
    TunFilter,
    TunnelConfig,
    Up,
    WireTuple,
)
from chainctl.net.layout import layout
from chainctl.supervisor.plan import CloseGate, Make, OpenGate, Prove, Remove, Step, plan
from tests.unit.supervisor.bugs import table_replaced_in_two_steps
from tests.unit.supervisor.chains import make_chain
from tests.unit.supervisor.checker import (
    Layout,
    Planner,
    WrongError,
    check_converges,
    check_goes_down,
    check_is_up,
    hop_numbers,
    single_faults,
    walk,
)
from tests.unit.supervisor.reach import Reach
from tests.unit.supervisor.world import World


@dataclass(frozen=True)
class Bug:
    lay_out: Layout = layout
    planner: Planner = plan
    world: type[World] = World


# Layouts in a wrong order, or without something.


def _last(*kinds: type) -> Layout:
    return lambda chain: _sorted(chain, lambda part: isinstance(part, kinds))


def _sorted(chain: Chain, late: Callable[[Part], bool]) -> tuple[Part, ...]:
    """A stable sort: what is not `late` keeps its place."""
    return tuple(sorted(layout(chain), key=late))


def _without(matches: Callable[[Part], bool]) -> Layout:
    return lambda chain: tuple(part for part in layout(chain) if not matches(part))


def _tables_accept_all(chain: Chain) -> tuple[Part, ...]:
    """The filter is the only layer."""
    return tuple(
        replace(part, rules="\tchain forward { }") if isinstance(part, NftTable) else part
        for part in layout(chain)
    )


def _gate_only_in_the_table(chain: Chain) -> tuple[Part, ...]:
    return tuple(
        replace(part, gate=None) if isinstance(part, PortRow) else part for part in layout(chain)
    )


def _client_right_after_its_tun(chain: Chain) -> tuple[Part, ...]:
    clients = {(part.ns, part.link): part for part in layout(chain) if isinstance(part, Client)}
    found: list[Part] = []
    for part in layout(chain):
        if not isinstance(part, Client):
            found.append(part)
        if isinstance(part, Tun):
            found.append(clients[part.ns, part.link])
    return tuple(found)


# Plans with the wrong steps.


def _planned(change: Callable[[list[Step]], Iterable[Step]]) -> Planner:
    def planner(want: Sequence[Part], have: Iterable[Part], **more: Any) -> tuple[Step, ...]:
        return tuple(change(list(plan(want, have, **more))))

    return planner


def _gate_early(steps: list[Step]) -> Iterable[Step]:
    return sorted(steps, key=lambda step: isinstance(step, Prove))


def _gate_before_the_work(steps: list[Step]) -> Iterable[Step]:
    return sorted(steps, key=lambda step: not isinstance(step, OpenGate))


def _only_the_guard_is_proved(steps: list[Step]) -> Iterable[Step]:
    return [step for step in steps if not isinstance(step, Prove) or step.hop == 1]


def _gate_left_open(steps: list[Step]) -> Iterable[Step]:
    return [step for step in steps if not isinstance(step, CloseGate)]


def _filter_off_while_rows_change(steps: list[Step]) -> Iterable[Step]:
    for step in steps:
        if isinstance(step, Remove) and isinstance(step.part, WireTuple):
            judge = PortFilter(step.part.port)
            yield from (Remove(judge), step, Make(judge))
        else:
            yield step


def _old_tuples_kept(steps: list[Step]) -> Iterable[Step]:
    return [
        step
        for step in steps
        if not (isinstance(step, Remove) and isinstance(step.part, WireTuple))
    ]


def _all_removed_first(*kinds: type) -> Planner:
    """Going down, these go before everything else, each by a step of its own."""

    def planner(want: Sequence[Part], have: Iterable[Part], **more: Any) -> tuple[Step, ...]:
        have = list(have)
        steps = plan(want, have, **more)
        if want:
            return steps
        first = [Remove(part) for part in have if isinstance(part, kinds)]
        rest = [step for step in steps if step not in first]
        closing = [step for step in rest if isinstance(step, CloseGate)]
        return (*closing, *first, *(step for step in rest if step not in closing))

    return planner


def _rows_of_a_replaced_leg_are_thought_to_stand(steps: list[Step]) -> Iterable[Step]:
    replaced = {
        step.part.port for step in steps if isinstance(step, Remove) and isinstance(step.part, Leg)
    }
    return [
        step
        for step in steps
        if not (
            isinstance(step, Make)
            and isinstance(step.part, PortRow | FarEnd | WireTuple | PortFilter)
            and step.part.port in replaced
        )
    ]


class _FiltersPassAll(World):
    """The tables are the only layer: every filter lets everything cross its wire."""

    def take(self, step: Step) -> None:
        super().take(step)
        if isinstance(step, Make) and isinstance(step.part, PortFilter):
            self.passing.add(step.part.port)


class _RowsOutliveTheirLeg(World):
    """A link made later gets the index, and with it what was written for another."""

    def _is_about(self, part: Part, port: PortName) -> bool:
        return not isinstance(part, PortRow | WireTuple) and super()._is_about(part, port)


def _ignores_what_goes_with_it(
    want: Sequence[Part], have: Iterable[Part], **more: Any
) -> tuple[Step, ...]:
    """Takes what a lost link carried for still there."""
    have = list(have)
    steps = plan(want, have, **more)
    known = {part.key for part in have}
    return tuple(
        step
        for step in steps
        if not (isinstance(step, Make) and isinstance(step.part, Route) and step.part.key in known)
    )


def _shared_parts_forgotten(
    want: Sequence[Part], have: Iterable[Part], **more: Any
) -> tuple[Step, ...]:
    return plan(want, have, **{**more, "shared": ()})


BUGS = {
    "filter last": Bug(lay_out=_last(PortFilter)),
    "filter after its port is up": Bug(lay_out=_last(PortFilter, Client, TunnelConfig)),
    "rows last": Bug(lay_out=_last(PortRow, WireTuple)),
    "far ends last": Bug(lay_out=_last(FarEnd)),
    "tables last": Bug(lay_out=_last(NftTable)),
    "table of the host last": Bug(
        lay_out=lambda chain: _sorted(
            chain, lambda part: isinstance(part, NftTable) and part.ns == HOST
        )
    ),
    "source filter last": Bug(lay_out=_last(TunFilter)),
    "unreachable routes last": Bug(
        lay_out=lambda chain: _sorted(
            chain, lambda part: isinstance(part, Route) and part.link is None
        )
    ),
    "rules last": Bug(lay_out=_last(Rule)),
    "links up last": Bug(
        lay_out=lambda chain: _sorted(chain, lambda part: isinstance(part, Up) and part.ns == PANEL)
    ),
    "client before its namespace is wired": Bug(lay_out=_client_right_after_its_tun),
    "no tables": Bug(
        lay_out=_without(lambda part: isinstance(part, NftTable) and part.ns != PANEL)
    ),
    "tables that accept everything": Bug(lay_out=_tables_accept_all),
    "no filters": Bug(lay_out=_without(lambda part: isinstance(part, PortFilter))),
    "filters that let everything pass": Bug(world=_FiltersPassAll),
    "no source filter": Bug(lay_out=_without(lambda part: isinstance(part, TunFilter))),
    "no unreachable routes": Bug(
        lay_out=_without(lambda part: isinstance(part, Route) and part.link is None)
    ),
    "no rule for what has no mark": Bug(
        lay_out=_without(lambda part: isinstance(part, Rule) and part.table is None)
    ),
    "gate only in the table": Bug(lay_out=_gate_only_in_the_table),
    "gate opened before the proofs": Bug(planner=_planned(_gate_early)),
    "gate opened before the work": Bug(planner=_planned(_gate_before_the_work)),
    "only the guard is proved": Bug(planner=_planned(_only_the_guard_is_proved)),
    "gate not closed first": Bug(planner=_planned(_gate_left_open)),
    "table replaced in two steps": Bug(planner=_planned(table_replaced_in_two_steps)),
    "filter off while rows change": Bug(planner=_planned(_filter_off_while_rows_change)),
    "old tuples kept": Bug(planner=_planned(_old_tuples_kept)),
    "tables removed first": Bug(planner=_all_removed_first(NftTable)),
    "filters removed first": Bug(planner=_all_removed_first(PortFilter)),
    "rows removed before the port is down": Bug(planner=_all_removed_first(PortRow, WireTuple)),
    "source filters removed first": Bug(planner=_all_removed_first(TunFilter)),
    "rules removed first": Bug(planner=_all_removed_first(Rule)),
    "replaced leg left without rows": Bug(
        planner=_planned(_rows_of_a_replaced_leg_are_thought_to_stand)
    ),
    "replaced leg keeps its old rows": Bug(world=_RowsOutliveTheirLeg),
    "routes thought to outlive their address": Bug(planner=_ignores_what_goes_with_it),
    "what both chains use removed with one": Bug(planner=_shared_parts_forgotten),
}


def _examine(bug: Bug, *, by_leaks_alone: bool = False) -> None:
    """What the exhaustive tests do, on one chain of two hops. Raises WrongError."""
    chain, older = make_chain(2), make_chain(2, servers=(1, 2))
    reach = Reach(chain, older)
    want, before = bug.lay_out(chain), bug.lay_out(older)
    crossed = _with_crossed_legs(chain, before)
    for begin in (bug.world(), bug.world(before).opened(older), bug.world(crossed).opened(older)):
        steps = bug.planner(
            want,
            begin.parts.values(),
            hops=hop_numbers(chain),
            gate_open=begin.filter_gate_open,
        )
        *_, end = walk(begin, steps, reach, faults=single_faults, by_leaks_alone=by_leaks_alone)
        if not by_leaks_alone:
            check_is_up(end, chain, want, reach)
            check_converges(end, chain, reach, planner=bug.planner, lay_out=bug.lay_out)
    whole = bug.world(want).opened(chain)
    down = bug.planner((), want, gate_open=True)
    for _ in walk(whole, down, reach, faults=single_faults, by_leaks_alone=by_leaks_alone):
        pass
    check_goes_down(bug.world(want), reach, planner=bug.planner)
    _examine_two_chains(bug)


def _with_crossed_legs(chain: Chain, parts: Iterable[Part]) -> Iterator[Part]:
    """Somebody gave the ends of the guard's legs each other's names."""
    guard = chain.hops[0]
    ends = {
        chain.in_port(guard): chain.out_port(guard),
        chain.out_port(guard): chain.in_port(guard),
    }
    for part in parts:
        yield replace(part, port=ends.get(part.port, part.port)) if isinstance(part, Leg) else part


def _examine_two_chains(bug: Bug) -> None:
    home, away = make_chain(1), make_chain(1, number=1, name="away", lan="192.168.20.1/24")
    mine, others = bug.lay_out(home), bug.lay_out(away)
    shared = {part.key for part in mine} & {part.key for part in others}
    both = bug.world([*mine, *others]).opened(home)
    steps = bug.planner((), mine, shared=shared, gate_open=True)
    for world in walk(both, steps, Reach(away, home), by_leaks_alone=True):
        if not set(others) <= set(world.parts.values()):
            raise WrongError("another chain lost something")


def test_the_examination_is_passed_without_a_bug() -> None:
    _examine(Bug())


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_found(name: str) -> None:
    with pytest.raises(WrongError):
        _examine(BUGS[name])


@pytest.mark.parametrize(
    "name",
    [
        "tables removed first",
        "tables that accept everything",
        "filters that let everything pass",
        "gate only in the table",
        "gate not closed first",
        "only the guard is proved",
    ],
)
def test_where_packets_get_tells_without_looking_at_the_order(name: str) -> None:
    with pytest.raises(WrongError, match="gets into"):
        _examine(BUGS[name], by_leaks_alone=True)
