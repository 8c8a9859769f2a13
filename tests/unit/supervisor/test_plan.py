"""`plan` over random debris: it converges, opens nothing on its way, and stands any one fault."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chainctl.model.chain import Chain
from chainctl.model.parts import LanLeg, LanMode
from chainctl.net.layout import layout
from chainctl.supervisor.plan import CloseGate, OpenGate, Prove, Step, plan
from tests.unit.supervisor.chains import chains
from tests.unit.supervisor.checker import (
    bad_things,
    carries,
    check_converges,
    check_goes_down,
    go,
    hop_numbers,
    single_faults,
    struck,
    walk,
)
from tests.unit.supervisor.debris import Found, debris
from tests.unit.supervisor.reach import Reach
from tests.unit.supervisor.world import ImpossibleError, World

_MANY = settings(max_examples=80, suppress_health_check=list(HealthCheck))


@given(chain=chains(4))
@_MANY
def test_a_whole_chain_carries_and_leaks_nothing(chain: Chain) -> None:
    reach = Reach(chain)
    world = World(layout(chain)).opened(chain)
    assert set(world.parts.values()) == set(layout(chain))
    assert carries(world, reach, chain)
    assert not bad_things(world, reach)


@given(found=debris())
@_MANY
def test_up_converges_from_anything(found: Found) -> None:
    check_converges(found.world, found.chain, Reach(found.chain, found.older))


@given(found=debris())
@_MANY
def test_down_leaves_nothing_of_anything(found: Found) -> None:
    check_goes_down(found.world, Reach(found.chain, found.older))


@given(found=debris(), going_down=st.booleans())
@_MANY
def test_no_step_opens_what_was_shut(found: Found, going_down: bool) -> None:
    reach = Reach(found.chain, found.older)
    allowed = bad_things(found.world, reach)
    for _ in walk(found.world, _steps(found, going_down), reach, allowed=allowed):
        pass


@given(found=debris(), going_down=st.booleans(), choice=st.randoms(use_true_random=False))
@_MANY
def test_no_step_opens_what_a_fault_left_shut(
    found: Found, going_down: bool, choice: object
) -> None:
    """The same fault before and after: what it lets out then, it let out already."""
    import random

    assert isinstance(choice, random.Random)
    reach = Reach(found.chain, found.older)
    steps = _steps(found, going_down)
    world = found.world
    strikes_at = choice.randrange(len(steps) + 1)
    go(ahead := world.copy(), steps[:strikes_at], reach)
    fault = choice.choice(list(single_faults(ahead)) or [("nothing", lambda _: None)])
    allowed = {str(leak) for leak in reach.leaks(struck(world, fault))}
    allowed |= {str(leak) for leak in reach.leaks(world)}
    fault[1](ahead)
    for step in [None, *steps[strikes_at:]]:
        try:
            if step is not None:
                ahead.take(step)
        except ImpossibleError:
            ahead.take(CloseGate())
        new = {str(leak) for leak in reach.leaks(ahead)} - allowed
        assert not new, f"{fault[0]} before step {strikes_at}; after {step}: {sorted(new)[0]}"


def _steps(found: Found, going_down: bool) -> tuple[Step, ...]:
    return plan(
        () if going_down else layout(found.chain),
        found.world.parts.values(),
        hops=() if going_down else hop_numbers(found.chain),
        gate_open=found.world.filter_gate_open,
    )


@given(chain=chains(3), other=st.sampled_from((0, 2, 3)))
@_MANY
def test_a_container_with_another_address_shuts_no_gate(chain: Chain, other: int) -> None:
    """What only concerns containers and devices is beside the traffic; all else is not."""
    docker = [lan for lan in chain.lans if lan.mode is LanMode.DOCKER]
    if not chain.published:
        return
    web, *more = chain.published
    inside = docker[0].address.network
    moved = replace(chain, published=(replace(web, to=inside[other] if other else None), *more))
    away = replace(moved, lans=tuple(replace(lan, joined=False) for lan in moved.lans))
    for have in (chain, away):
        steps = plan(layout(moved), layout(have), hops=hop_numbers(chain), gate_open=True)
        assert not [step for step in steps if isinstance(step, CloseGate | Prove | OpenGate)]
        shut = plan(layout(moved), layout(have), hops=hop_numbers(chain), gate_open=False)
        assert isinstance(shut[-1], OpenGate)
    gateway = next(part for part in layout(chain) if isinstance(part, LanLeg))
    broken = [part for part in layout(chain) if part.key != gateway.key]
    steps = plan(layout(moved), broken, hops=hop_numbers(chain), gate_open=True)
    assert isinstance(steps[0], CloseGate)
