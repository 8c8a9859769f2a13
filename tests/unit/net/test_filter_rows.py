"""Rows of the filter's maps: what a row says of others is true, and read back only if it is."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given

from chainctl.model.parts import ClientPolicy
from chainctl.net import identity
from chainctl.net.filter_rows import POLICY_MAPS, parse_rows, rule_rows
from chainctl.net.identity import COVERS_CLASSES, COVERS_PROTOCOLS
from chainctl.net.policy import compile_policy
from tests.unit.net.test_policy import policies

_NO_ROWS: Mapping[str, Mapping[bytes, bytes]] = {name: {} for name in POLICY_MAPS}


@given(policies)
def test_a_row_for_all_covers_only_what_its_pair_does_not_have(policy: ClientPolicy) -> None:
    rows = compile_policy(policy)
    raw = rule_rows(1, rows)
    written = list(raw)
    for key in rows.rules:
        packed = identity.POLICY_KEY.pack(1, *key, 0)
        *_, covers, _ = identity.POLICY_RULE.unpack(raw[packed])
        pair = [one for one in rows.rules if one[:2] == key[:2]]
        finer = [one for one in pair if one.port_class or one.protocol]
        if key in finer:
            assert covers == 0
            continue
        assert bool(covers & COVERS_CLASSES) == (not any(one.port_class for one in finer))
        assert bool(covers & COVERS_PROTOCOLS) == all(one.port_class for one in finer)
        # Nobody may be judged by it while those that it does not cover are not there yet.
        places = [written.index(identity.POLICY_KEY.pack(1, *one, 0)) for one in finer]
        assert all(place < written.index(packed) for place in places)


@given(policies)
def test_a_row_that_covers_too_much_is_no_row(policy: ClientPolicy) -> None:
    rows = compile_policy(policy)
    raw = rule_rows(1, rows)
    assert parse_rows(1, {**_NO_ROWS, "policy_map": raw}).rules == rows.rules
    for packed, value in raw.items():
        *rule, covers, zero = identity.POLICY_RULE.unpack(value)
        for other in {0, 1, 2, 3} - {covers}:
            wrong = {**raw, packed: identity.POLICY_RULE.pack(*rule, other, zero)}
            seen = parse_rows(1, {**_NO_ROWS, "policy_map": wrong}).rules
            assert len(seen) == len(rows.rules) - 1
