"""When the delaying box lets a packet go on."""

from __future__ import annotations

import random
import time

import pytest

from chainctl.lab.programs.box import due_time

NEAR, FAR, ELSEWHERE = b"\x05\x01", b"\x05\x02", b"\xc0\x00"


def packet(source: bytes, destination: bytes) -> bytes:
    return bytes(12) + source + b"\0\x0a" + destination + b"\0\x0a"


@pytest.mark.parametrize(
    ("source", "destination", "delay"),
    [(NEAR, ELSEWHERE, 0.1), (ELSEWHERE, NEAR, 0.1), (NEAR, FAR, 0.4), (ELSEWHERE, ELSEWHERE, 0)],
)
def test_both_servers_delay(source: bytes, destination: bytes, delay: float) -> None:
    lines = {NEAR: (0.1, 0.0, 0.0), FAR: (0.3, 0.0, 0.0)}
    begun = time.monotonic()
    due = due_time(packet(source, destination), lines, random.Random(1))
    assert due is not None
    assert begun + delay <= due <= time.monotonic() + delay


def test_one_way_loss_takes_only_what_the_server_sends() -> None:
    lines = {NEAR: (0.0, 0.0, 1.0)}
    chance = random.Random(1)
    assert due_time(packet(NEAR, FAR), lines, chance) is None
    assert due_time(packet(FAR, NEAR), lines, chance) is not None


def test_losses_are_a_share_and_the_same_each_time() -> None:
    lines = {NEAR: (0.0, 0.3, 0.0)}

    def lost() -> list[bool]:
        chance = random.Random(1)
        return [due_time(packet(FAR, NEAR), lines, chance) is None for _ in range(1000)]

    assert lost() == lost()
    assert 250 < sum(lost()) < 350
