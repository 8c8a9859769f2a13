"""Where a client begins anew that ended: in its place, or beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chainctl.model.chain import Chain, Hop
from chainctl.model.parts import TCP, UDP, Client, Part, TunnelConfig
from chainctl.net.layout import layout
from chainctl.supervisor.ended import Line, begins_elsewhere, is_free, line_of
from chainctl.supervisor.plan import Step, plan
from tests.unit.supervisor.chains import make_chain

NOW = 1_795_272_000.0


def connected(chain: Chain, ago: float) -> dict[Line, float]:
    return {line_of(chain, hop, hop.active): NOW - ago for hop in chain.hops}


def mending(chain: Chain, *ended: int, also: Sequence[str] = ()) -> tuple[Step, ...]:
    """What is to be done when the clients of these hops ended; `also`: kinds of parts lost."""
    names = {chain.client_name(chain.hops[number - 1], chain.hops[0].active) for number in ended}

    def is_lost(part: Part) -> bool:
        if isinstance(part, Client | TunnelConfig) and part.name in names:
            return True
        return type(part).__name__ in also

    parts = layout(chain)
    return plan(parts, [part for part in parts if not is_lost(part)])


def number_of(hop: Hop | None) -> int | None:
    return hop.number if hop else None


@pytest.mark.parametrize(
    ("via", "ago", "where"),
    [(UDP, 5.0, 2), (UDP, 29.5, 2), (UDP, 32.0, None), (TCP, 5.0, None), (None, 5.0, None)],
)
def test_beside_it_as_long_as_the_server_would_not_answer(
    via: int | None, ago: float, where: int | None
) -> None:
    chain = make_chain(3, vias=(UDP, via, UDP))
    steps = mending(chain, 2)
    assert number_of(begins_elsewhere(chain, steps, connected(chain, ago), NOW)) == where


def test_with_nobody_who_knows_since_when_it_may_be_new() -> None:
    chain = make_chain(3, vias=(UDP, UDP, UDP))
    assert number_of(begins_elsewhere(chain, mending(chain, 3), {}, NOW)) == 3


def test_of_several_the_outermost_first() -> None:
    chain = make_chain(3, vias=(UDP, None, UDP))
    found = begins_elsewhere(chain, mending(chain, 3, 1, 2), connected(chain, 5.0), NOW)
    assert number_of(found) == 1


def test_not_while_anything_else_is_wrong() -> None:
    chain = make_chain(3, vias=(UDP, UDP, UDP))
    for kind in ("Route", "NftTable", "WireTuple"):
        steps = mending(chain, 2, also=[kind])
        assert begins_elsewhere(chain, steps, connected(chain, 5.0), NOW) is None


def test_a_clock_that_was_set_back_bars_no_port_for_long() -> None:
    chain = make_chain(1, vias=(UDP,))
    line = line_of(chain, chain.hops[0], chain.hops[0].active)
    assert is_free(line, {line: NOW + 1000}, NOW)
    assert is_free(line, {}, NOW)
    assert not is_free(line, {line: NOW}, NOW)
