"""When something is to be looked at: APScheduler waits, a tick only says that it is time.

The only module that knows APScheduler. What is called on a tick runs on the scheduler's one
thread and may do no more than put a reason into a chain's queue.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

Tick = Callable[[], None]


class Ticks:
    """Jobs by key; one that is set again replaces the one before. Safe from any thread."""

    def __init__(self) -> None:
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            # "Debug" runs a job where it became due: on the thread that waits, no pool of ten.
            executors={"default": DebugExecutor()},
            # Late is better than never, and once is enough, after a suspended night too.
            job_defaults={"misfire_grace_time": None, "coalesce": True},
            daemon=True,
        )
        self._scheduler.start()
        self._dice = random.SystemRandom()

    def close(self) -> None:
        self._scheduler.shutdown(wait=True)

    def every(self, key: str, seconds: float, tick: Tick) -> None:
        """The first time after a part of `seconds` that chance chooses, so that the chains of a
        machine take turns.
        """
        first = _now() + timedelta(seconds=self._dice.uniform(0.0, seconds))
        trigger = IntervalTrigger(seconds=seconds, timezone=UTC)
        self._scheduler.add_job(tick, trigger, id=key, next_run_time=first, replace_existing=True)

    def once(self, key: str, at: float, tick: Tick) -> None:
        """`at` in seconds since 1970; at once when that is past."""
        moment = datetime.fromtimestamp(max(at, 0.0), UTC)
        trigger = DateTrigger(max(moment, _now()))
        self._scheduler.add_job(tick, trigger, id=key, replace_existing=True)

    def forget(self, key: str) -> None:
        """Nothing happens when there is no such job."""
        with suppress(JobLookupError):
            self._scheduler.remove_job(key)

    def due_at(self, key: str) -> float | None:
        """Seconds since 1970; None: there is no such job."""
        job = self._scheduler.get_job(key)
        return None if job is None else float(job.next_run_time.timestamp())


def _now() -> datetime:
    return datetime.now(UTC)
