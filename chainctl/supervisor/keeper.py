"""Keeps the gates of chains that are at rest open, so that nobody has to wake up for each.

One thread. A worker that has found everything as it should be rests; from then on the readings of
its hops are looked at here, and its gate is prolonged with those of all others in one go. As
soon as anything is not as before the worker is woken, and until it has looked nobody prolongs its
gate. So a worker that is busy, stuck or dead lets its gate shut, as if there were no keeper.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from chainctl.errors import ChainctlError
from chainctl.host import clock
from chainctl.store.journal import Journal, Wanted
from chainctl.supervisor.machine import Machine, Prolonging
from chainctl.supervisor.verdict import FRESH
from chainctl.supervisor.worker import Worker

_SOONEST, _LATEST = 0.25, 1.0
"""Seconds after a look at all chains for the next: when answers came, and in any case."""
_AT_ONCE = 50
"""Chains whose workers are held up at the same time, for a few milliseconds."""


class Keeper:
    """Runs from when it is made until `close`."""

    def __init__(
        self,
        machine: Machine,
        journal: Journal,
        workers: Callable[[], Mapping[str, Worker]],
        *,
        answers: threading.Event,
    ) -> None:
        """`answers` is set when hops have answered."""
        self._machine = machine
        self._journal = journal
        self._workers = workers
        self._answers = answers
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._halt.set()
        self._answers.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            begun = clock.boot_seconds()
            if self._halt.wait(_SOONEST):
                return
            self._answers.wait(_LATEST - _SOONEST)
            self._answers.clear()
            if self._halt.is_set():
                return
            workers = list(self._workers().values())
            if clock.boot_seconds() - begun > FRESH:
                # This process was stopped, or the machine slept: who knows what was done.
                _wake(workers)
                continue
            self._keep(workers)

    def _keep(self, workers: Sequence[Worker]) -> None:
        try:
            wanting = [worker for worker in workers if worker.wants]
            for at in range(0, len(wanting), _AT_ONCE):
                self._prolong(wanting[at : at + _AT_ONCE])
        except ChainctlError:
            # Their gates shut by themselves, and each worker finds out why.
            _wake(workers)
        except Exception as error:
            traceback.print_exception(error)
            _wake(workers)

    def _prolong(self, workers: Sequence[Worker]) -> None:
        owners: dict[Prolonging, Worker] = {}
        begun = clock.boot_seconds()

        def due(gate_until: Callable[[int], int]) -> Sequence[Prolonging]:
            if clock.boot_seconds() - begun > FRESH:
                _wake(workers)  # The same while this thread waited for its turn.
                return ()
            wanted = self._wanted()
            for worker in workers:
                if worker.hold():
                    held.callback(worker.release)
                    found = worker.due(gate_until, wanted.get(worker.name))
                    if found is not None:
                        owners[found] = worker
            return list(owners)

        with ExitStack() as held:
            done = self._machine.prolong(due)
            wanted = self._wanted() if done else {}
            for prolonged, failed in done:
                worker = owners[prolonged]
                if failed is None:
                    worker.kept(prolonged, wanted.get(worker.name))
                else:
                    worker.wake()

    def _wanted(self) -> Mapping[str, Wanted]:
        return {wanted.name: wanted for wanted in self._journal.chains()}


def _wake(workers: Iterable[Worker]) -> None:
    for worker in workers:
        worker.wake()
