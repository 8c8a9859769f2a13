"""What the pulse asks the machine for."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from typing import cast

from chainctl.errors import MendHost
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.pulse import Pulse


class Deaf:
    """Stands in for a machine that can say nothing at first, and always has something to tell."""

    def __init__(self, descriptor: int) -> None:
        self.heard = (descriptor,)
        self.asked: list[bool] = []
        self.enough = threading.Event()

    def news(self, *, rows: bool, pins: bool) -> frozenset[str]:
        self.asked.append(pins)
        if len(self.asked) == 4:
            self.enough.set()
        if len(self.asked) < 3:
            raise MendHost("C311", "not now")
        return frozenset()


def test_pins_are_looked_at_until_it_worked() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"x")
        machine = Deaf(reader)
        with closing(Pulse(cast(Machine, machine), dict)):
            assert machine.enough.wait(30)
    finally:
        os.close(reader)
        os.close(writer)
    assert machine.asked[:3] == [True, True, True]
