"""A hop that is asked as the sniffer asks, in simulated time.

`watch` follows the rules of `chainctl.supervisor.sniffer`: a question every INTERVAL, every
BURST_INTERVAL while one is overdue, and one at the moment the last becomes overdue.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

from chainctl.supervisor.sniffer import BURST_INTERVAL, INTERVAL
from chainctl.supervisor.suspicion import NEVER_HEARD, Behaviour, is_dead

Path = Callable[[float], float | None]
"""When a question is asked -> seconds until it is answered; None: never."""


def watch(path: Path, *, seconds: float, first: float) -> list[float]:
    """The moments at which the hop was called dead, asked from `first` on."""
    behaviour: Behaviour = NEVER_HEARD
    due, late, answered = first, math.inf, -1.0
    asked: list[float] = []
    unheard: list[float] = []
    answers: list[tuple[float, float]] = []
    deaths = []
    while min(due, late) < seconds:
        now = min(due, late)
        if answers and answers[0][0] <= now:
            heard, sent = heapq.heappop(answers)
            lost = sum(answered < before < sent for before in asked)
            asked = [before for before in asked if before > sent]
            answered, late, unheard = max(answered, sent), math.inf, []
            behaviour = behaviour.after(heard - sent, lost)
            continue
        asked.append(now)
        unheard.append(now)
        answer = path(now)
        if answer is not None:
            heapq.heappush(answers, (now + answer, now))
        overdue = sum(now - before > behaviour.late for before in unheard) if behaviour.mean else 0
        dead = is_dead(behaviour, silence=now - unheard[0], overdue=overdue)
        if dead:
            deaths.append(now)
        due = now + (BURST_INTERVAL if overdue and not dead else INTERVAL)
        late = now + behaviour.late
    return deaths


def lossy(dice: random.Random, *, rtt: float, loss: float = 0.0, jitter: float = 0.05) -> Path:
    """`loss` is that of one way; `jitter` the deviation as a share of `rtt`."""

    def path(asked: float) -> float | None:
        if dice.random() < 1 - (1 - loss) ** 2:
            return None
        return max(0.0005, dice.gauss(rtt, rtt * jitter))

    return path


def detection(seed: int, *, rtt: float, loss: float = 0.0) -> float:
    """Seconds from the death of a server to its being noticed."""
    dice = random.Random(seed)
    death = 20 + dice.random()
    before = lossy(dice, rtt=rtt, loss=loss)
    deaths = watch(lambda asked: before(asked) if asked < death else None, seconds=30, first=0.01)
    return next(at for at in deaths if at >= death) - death
