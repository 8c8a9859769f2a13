"""Carries a plan out: one step, one event, stop at the first failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from chainctl.errors import ChainctlError, MendHost, StepFailed
from chainctl.host import clock
from chainctl.model.chain import Chain
from chainctl.model.event import Event
from chainctl.store.journal import Journal
from chainctl.supervisor.crash import CrashPoints
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, Step
from chainctl.supervisor.words import describe_step, hop_of

Progress = Callable[[str, str, float], None]
"""Called with what was reached (`shut`, a hop's name …), a sentence, and seconds it took."""


class Executor:
    """`prove` is asked for Prove steps and raises when a hop does not answer."""

    def __init__(
        self, machine: Machine, journal: Journal, crash: CrashPoints, *, chain_name: str
    ) -> None:
        self._machine = machine
        self._journal = journal
        self._crash = crash
        self._name = chain_name

    def execute(
        self,
        steps: Iterable[Step],
        *,
        number: int,
        chain: Chain | None,
        prove: Callable[[int], None],
        open_gate: Callable[[], None],
        done: Callable[[Step], None] = lambda _: None,
    ) -> None:
        """`done` is told of each step that was. Raises StepFailed; then the gate is shut and the
        rest of the plan was not touched."""
        try:
            for step in steps:
                self._execute(step, number, chain, prove, open_gate)
                done(step)
        finally:
            # Nothing goes on behind a plan that has ended. Who needs a client waited for it, so
            # what fails here was begun by a plan that has failed already.
            with suppress(ChainctlError, OSError):
                self._machine.settle(self._name)

    def _execute(
        self,
        step: Step,
        number: int,
        chain: Chain | None,
        prove: Callable[[int], None],
        open_gate: Callable[[], None],
    ) -> None:
        begun = time.monotonic()
        self._crash.pass_by("before", step)
        try:
            self._take(step, number, prove, open_gate)
        except ChainctlError as error:
            self._failed(step, error, number, chain)
        except OSError as error:
            cause = MendHost("C300", f"the kernel refused: {error}", hint="chainctl doctor")
            self._failed(step, cause, number, chain)
        self._crash.pass_by("after", step)
        self._journal.append(
            Event(
                _PAST[type(step)],
                self._name,
                describe_step(step),
                hop=_hop(chain, step),
                facts={"seconds": round(time.monotonic() - begun, 6)},
            )
        )

    def carry_out(self, what: str, act: Callable[[], None]) -> None:
        """A change that is in no plan, between crash points as a step is."""
        self._crash.pass_by("before", what)
        act()
        self._crash.pass_by("after", what)

    def _take(
        self,
        step: Step,
        number: int,
        prove: Callable[[int], None],
        open_gate: Callable[[], None],
    ) -> None:
        match step:
            case CloseGate():
                self._machine.close_gate(self._name, number)
            case Make(part):
                self._machine.make(part)
            case Change(old, new):
                self._machine.change(old, new)
            case Remove(part):
                self._machine.remove(part)
            case Prove(hop):
                prove(hop)
            case OpenGate():
                open_gate()

    def _failed(self, step: Step, cause: ChainctlError, number: int, chain: Chain | None) -> None:
        still_blocked = self._shut(number)
        self._journal.append(
            Event(
                "step_failed",
                self._name,
                f"{describe_step(step)}: {cause.message}",
                hop=_hop(chain, step),
                code=cause.code,
                facts={"still_blocked": still_blocked},
            )
        )
        raise StepFailed(describe_step(step), cause, still_blocked=still_blocked) from cause

    def _shut(self, number: int) -> bool:
        """Whether nothing can pass now: the gate is shut, or known to shut by itself."""
        try:
            self._machine.close_gate(self._name, number)
        except (ChainctlError, OSError):
            return self._machine.gate_until(number) <= clock.boot_ns()
        return True


_PAST: dict[type, str] = {
    CloseGate: "gate_closed",
    OpenGate: "gate_opened",
    Prove: "hop_proved",
    Make: "part_made",
    Change: "part_changed",
    Remove: "part_removed",
}


def _hop(chain: Chain | None, step: Step) -> str:
    if chain is None:
        return ""
    match step:
        case Prove(hop):
            return chain.hops[hop - 1].name
        case Make(part) | Remove(part) | Change(_, part):
            return hop_of(chain, part)
        case _:
            return ""
