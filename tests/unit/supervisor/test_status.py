"""What `chainctl status` says of a chain that changes while one looks."""

from __future__ import annotations

from chainctl.supervisor.status import _hops
from tests.unit.supervisor.chains import make_chain


def test_a_hop_whose_outlook_is_gone_is_told_without_it() -> None:
    chain = make_chain()
    told = _hops(chain, {}, {}, lambda _hop, _silent: None, 1000.0)
    assert [entry["hop"] for entry in told] == [hop.name for hop in chain.hops]
    assert all(entry["candidates"] == 0 and entry["standby"] is None for entry in told)
