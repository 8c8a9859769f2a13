"""One rotation after the other, by hand, hop after hop: what becomes more of anything?"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.system.census import census, differences, memory_of
from tests.system.chain_lab import HOPS, MANY_CHANGES, ChainLab, chain_lab

WARM = 50
"""Rotations after which memory is to stay as it is."""
_PATIENCE = 30.0


@dataclass(frozen=True)
class Course:
    left: dict[str, int]
    """What there is more (or less) of than before, and by how many."""
    memory: tuple[int, ...]
    """Bytes of the supervisor after each rotation."""

    def growth(self, after: int = WARM) -> float:
        """Bytes a rotation, after the first ones; the slope of the line of least squares."""
        late = self.memory[after:]
        return statistics.linear_regression(range(len(late)), late).slope


def rotate_many(letter: str, count: int) -> Course:
    """`count` rotations of a chain of its own."""
    with chain_lab(letter, spares=9, more=MANY_CHANGES.replace("{", "{drain: 1s, ")) as chain:
        # The first ones load what is loaded once.
        _rotate(chain, HOPS)
        before, known, replaced = census(chain.lab), chain.newest_event(), 0
        memory = []
        for hop in itertools.islice(itertools.cycle(HOPS), count):
            _rotate(chain, [hop], settled=False)
            memory.append(memory_of(chain.lab))
            # Each leaves a good deal of events, of which one can ask for the newest only.
            replaced += chain.replaced_since(known) == [hop]
            known = chain.newest_event()
        _settle(chain)
        if replaced != count:
            raise RuntimeError(f"{replaced} of {count} rotations were carried out")
        return Course(differences(before, census(chain.lab)), tuple(memory))


def _rotate(chain: ChainLab, hops: Sequence[str], *, settled: bool = True) -> None:
    for hop in hops:
        chain.rotate(hop)
    if settled:
        _settle(chain)


def _settle(chain: ChainLab) -> None:
    """Until every hop has one tunnel."""
    deadline = time.monotonic() + _PATIENCE
    while any(hop["draining_seconds"] is not None for hop in chain.drill.status()["hops"]):
        if time.monotonic() > deadline:
            raise RuntimeError("a tunnel that was replaced does not go")
        time.sleep(0.05)
    # What the worker is at when it has shown this: the next request waits for it.
    chain.ask({"do": "open", "chain": chain.lab.name})
