"""Clients where cgroups are of version 2: the same tests, on a machine that has only that."""

from __future__ import annotations

import pytest

from tests.kernel.test_runtime_client import (
    image,
    intruder,
    rig,
    test_a_container_that_was_made_and_never_started_is_no_client,
    test_an_attacker_inside_gets_nowhere,
    test_it_has_no_rights,
    test_it_is_limited,
    test_its_end_is_noticed,
    test_stopping_leaves_nothing_and_may_be_repeated,
    test_two_clients_shake_hands_and_carry_packets,
)

__all__ = [
    "image",
    "intruder",
    "rig",
    "test_a_container_that_was_made_and_never_started_is_no_client",
    "test_an_attacker_inside_gets_nowhere",
    "test_it_has_no_rights",
    "test_it_is_limited",
    "test_its_end_is_noticed",
    "test_stopping_leaves_nothing_and_may_be_repeated",
    "test_two_clients_shake_hands_and_carry_packets",
]

pytestmark = pytest.mark.vm
