"""Every command, killed before every step, with every single fault; 1 to 3 hops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from chainctl.model.chain import Chain, Engine
from chainctl.model.parts import HOST, PANEL, Namespace
from chainctl.net.layout import layout
from chainctl.supervisor.plan import Step, plan
from tests.unit.supervisor.chains import make_chain
from tests.unit.supervisor.checker import (
    bad_things,
    check_converges,
    check_goes_down,
    check_is_up,
    go,
    hop_numbers,
    single_faults,
    struck,
    walk,
)
from tests.unit.supervisor.reach import Reach
from tests.unit.supervisor.world import World


@dataclass(frozen=True)
class Command:
    """`chain` None: down. `before` None: from nothing."""

    chain: Chain | None
    before: Chain | None

    @property
    def chains(self) -> tuple[Chain, ...]:
        return tuple(chain for chain in (self.chain, self.before) if chain is not None)

    def world(self) -> World:
        return World(layout(self.before)).opened(self.before) if self.before else World()

    def steps(self, world: World) -> tuple[Step, ...]:
        return plan(
            layout(self.chain) if self.chain else (),
            world.parts.values(),
            hops=hop_numbers(self.chain) if self.chain else (),
            gate_open=world.filter_gate_open,
        )


def _commands() -> dict[str, Command]:
    found = {}
    for hops in (1, 2, 3):
        chain = make_chain(hops)
        found[f"up {hops}"] = Command(chain, None)
        found[f"down {hops}"] = Command(None, chain)
        for changed in range(hops):
            servers = tuple(2 if hop == changed else 1 for hop in range(hops))
            name = f"another server for hop {changed + 1} of {hops}"
            found[name] = Command(make_chain(hops, servers=servers), chain)
    for before, after in ((1, 2), (2, 1), (3, 2), (2, 3)):
        found[f"{before} to {after} hops"] = Command(make_chain(after), make_chain(before))
    two = make_chain(2)
    for name, other in {
        "another LAN": make_chain(2, lan="192.168.77.1/24"),
        "another engine": make_chain(2, engine=Engine.KERNEL),
        "a smaller path": make_chain(2, path_mtu=1400),
        "both slots": make_chain(2, both_slots=True),
        "Docker came": make_chain(2, docker_user=True),
        "the host forwards": make_chain(2, forwarded_before=True),
    }.items():
        found[name] = Command(other, two)
        found[f"back from: {name}"] = Command(two, other)
    return found


COMMANDS = _commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_crash_and_single_fault(name: str) -> None:
    command = COMMANDS[name]
    reach = Reach(*command.chains)
    steps = command.steps(command.world())
    states = 0
    for world in walk(command.world(), steps, reach, faults=single_faults):
        # Killed here: both commands go on from what there is.
        check_goes_down(world, reach)
        for chain in command.chains:
            check_converges(world, chain, Reach(chain, *command.chains))
        states += 1
    assert states == len(steps) + 1 > 5


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_every_single_fault_of_a_running_chain_is_mended(hops: int) -> None:
    chain = make_chain(hops)
    reach = Reach(chain)
    whole = World(layout(chain)).opened(chain)
    for fault in single_faults(whole):
        world = struck(whole, fault)
        assert not reach.leaks(world), fault[0]
        want = layout(chain)
        steps = plan(
            want,
            world.parts.values(),
            hops=hop_numbers(chain),
            gate_open=world.filter_gate_open,
        )
        allowed = bad_things(world, reach)
        *_, end = walk(world, steps, reach, allowed=allowed)
        check_is_up(end, chain, want, reach)


def test_nothing_is_done_to_a_whole_chain() -> None:
    chain = make_chain(3)
    want = layout(chain)
    assert plan(want, reversed(want), hops=[1, 2, 3], gate_open=True) == ()


def test_a_gate_that_is_about_to_shut_is_proved_and_stays_open() -> None:
    chain = make_chain(2)
    steps = plan(layout(chain), layout(chain), hops=[1, 2], gate_open=True, proved=False)
    assert [str(step) for step in steps] == ["Prove(hop=1)", "Prove(hop=2)", "OpenGate()"]


@pytest.mark.parametrize("state", ["shut by hand", "no hops to prove"])
def test_a_gate_that_should_be_shut_is_shut(state: str) -> None:
    chain = make_chain(2)
    want = layout(chain)
    hops: tuple[int, ...] = () if state == "no hops to prove" else (1, 2)
    for proved in (True, False):
        steps = plan(
            want,
            want,
            hops=hops,
            gate_open=True,
            open_wanted=state != "shut by hand",
            proved=proved,
        )
        assert [str(step) for step in steps] == ["CloseGate()"]
    again = plan(want, want, hops=hops, gate_open=False, open_wanted=state != "shut by hand")
    assert again == ()


def test_hops_are_proved_outside_in() -> None:
    chain = make_chain(3)
    steps = plan(layout(chain), layout(chain), hops=[3, 1, 2], gate_open=False)
    assert [str(step) for step in steps] == [
        "Prove(hop=1)",
        "Prove(hop=2)",
        "Prove(hop=3)",
        "OpenGate()",
    ]


def _mine(chain: Chain) -> Callable[[World], list[object]]:
    return lambda world: [part for part in world.parts.values() if part in set(layout(chain))]


def test_another_chain_keeps_what_both_use() -> None:
    """Of two chains one goes down, killed before every step; the other carries on."""
    home, away = make_chain(2), make_chain(2, number=1, name="away", lan="192.168.20.1/24")
    shared = {part.key for part in layout(home)} & {part.key for part in layout(away)}
    shared_parts = [part for part in layout(home) if part.key in shared]
    assert Namespace(PANEL) in shared_parts
    both = World([*layout(home), *layout(away)]).opened(home)
    reach = Reach(away)
    for chain, other in ((home, away), (away, home)):
        have = [part for part in both.parts.values() if part in layout(chain)]
        steps = plan((), have, shared=shared, gate_open=True)
        reach = Reach(other, chain)
        for world in walk(both.copy(), steps, reach):
            assert set(layout(other)) <= set(world.parts.values())
        assert set(world.parts.values()) == set(layout(other))


def test_down_leaves_the_panel_and_the_host_table_for_the_end() -> None:
    chain = make_chain(3)
    steps = plan((), layout(chain), gate_open=True)
    last = [step.part.key for step in steps[-2:]]  # type: ignore[union-attr]
    assert last == [("namespace", PANEL), ("nft", HOST, "chainctl-home")]


def test_the_walk_back_is_checked_too() -> None:
    """The control for `go`: a plan for another world is refused."""
    chain = make_chain(1)
    steps = plan(layout(chain), ())
    with pytest.raises(AssertionError, match="needs"):
        go(World(), steps[2:], Reach(chain))
