"""Judging a machine: can a chain run here, and what stands in its way.

Pure: `chainctl.net.facts` reads, `assess` judges, `doctor`, `plan` and `up` show or obey.
Codes C3xx name what blocks a chain, N3xx what a person should know; all of them are listed
in docs/doctor.md and keep their meaning for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from chainctl.model.doctor_kernel import judge_features, judge_limits, judge_rights
from chainctl.model.doctor_lan import judge_addresses, judge_lan, judge_lan_address
from chainctl.model.doctor_uplink import judge_firewall, judge_uplink
from chainctl.model.facts import Facts, LanFacts, NetworkFacts
from chainctl.model.findings import Finding, Level, Wish


def assess(facts: Facts, wish: Wish) -> tuple[Finding, ...]:
    """All findings, the good ones too, in the order in which they were looked at."""
    return (
        *judge_rights(facts.host),
        *judge_features(facts.host, facts.network, wish),
        *judge_limits(facts, wish),
        *judge_uplink(facts.network, wish),
        *judge_firewall(facts.network, wish),
        *judge_addresses(facts.network, wish),
        *judge_lan(facts.network, facts.lan, wish),
    )


def assess_lan(network: NetworkFacts, heard: LanFacts, wish: Wish) -> tuple[Finding, ...]:
    """What concerns one more LAN of a chain that `assess` has looked at with another."""
    return (*judge_lan_address(network, wish), *judge_lan(network, heard, wish))


def worst(findings: Sequence[Finding]) -> Level:
    return max((finding.level for finding in findings), default=Level.OK)


def exit_status(findings: Sequence[Finding]) -> int:
    """0: nothing worse than notes, 1: warnings, 3: this host cannot."""
    match worst(findings):
        case Level.BLOCKS:
            return 3
        case Level.WARNING:
            return 1
        case _:
            return 0
