"""Which chains are meant when the kernel tells of something."""

from __future__ import annotations

import pytest

from chainctl.model.chain import client_bridge
from chainctl.model.parts import HOST, PANEL, NsName
from chainctl.net.changes import Touched
from chainctl.net.links_seen import bridge_port
from chainctl.supervisor.news import chains_of
from chainctl.supervisor.pulse import REFRESHES

LONG = "behind-the-seven-hills"
CHAINS = {0: "home", 7: "work", 70: "away", 71: LONG}
HOME, WORK, ALL = {"home"}, {"work"}, set(CHAINS.values())


@pytest.mark.parametrize(
    ("ns", "what", "whose"),
    [
        ("work.hop2", "tunA", WORK),
        ("work.gateway", "", WORK),
        ("gone.hop1", "", {"gone"}),
        (PANEL, "c7-h1in", WORK),
        (PANEL, "c70-gw", {"away"}),
        (PANEL, "c8-gw", set()),
        (PANEL, "", None),
        (PANEL, "chainctl", None),
        (PANEL, "lo", set()),
        (HOST, "chain0", HOME),
        (HOST, "chain7", WORK),
        (HOST, "chainctl-home", HOME),
        (HOST, "chainctl-home_lan", HOME),
        (HOST, "chainctl-gone_lan", set()),
        (HOST, "ch-home", HOME),
        (HOST, client_bridge(LONG), {LONG}),
        (HOST, bridge_port(NsName("work.gateway"), "lan0"), ALL),
        (HOST, "filter", ALL),
        (HOST, "eth0", set()),
        (HOST, "", set()),
    ],
)
def test_whose_it_is(ns: str, what: str, whose: set[str] | None) -> None:
    assert chains_of(Touched(NsName(ns), what), CHAINS) == whose


def test_gates_are_refreshed_long_before_they_shut() -> None:
    assert REFRESHES.of(1) == 0.5
    assert max(REFRESHES.of(chains) for chains in range(2049)) <= 1.5
