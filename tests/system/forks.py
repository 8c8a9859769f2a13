"""Supervisors that start in a millisecond: one process imports everything and forks.

A sweep starts hundreds of supervisors, and starting Python costs more than a whole chain. The
process made here lives in a place of a lab and has no threads; each child it forks is a
supervisor of its own, from the lock to the journal, carries out the requests it is given as
`chainctl` does where none is running, and ends. A child may be told to crash
(`chainctl.supervisor.crash`), or is killed by strace, and then dies as by a power cut.

    with Forks(lab) as forks:
        assert forks.run(UP, crash_at="17:before").killed
        assert forks.run(UP).checked().steps == (83,)

What takes its time in the background needs requests of its own, which no supervisor has:
`adopt` (as a supervisor does that starts by itself), `crash_in` (the step counts from there
on), `freeze` (a server of the lab), `settle` (until
every server is replaced that is to be, and nothing of an older one is left).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from chainctl.errors import ChainctlError
from chainctl.lab.lab import Lab

Facts = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
_SETTLED = 45.0
"""Seconds; most takes three, but a supervisor that found nobody tries again ever more rarely."""


@dataclass(frozen=True)
class Ran:
    """What became of one supervisor."""

    killed: bool = False
    """It ended by SIGKILL."""
    answers: tuple[Any, ...] = ()
    """What it answered, one per request."""
    error: Facts | None = None
    """As the socket carries it; then the rest was not asked."""
    died: str = ""
    """How it ended otherwise than by itself or by SIGKILL."""
    steps: tuple[int, ...] = ()
    """How many were carried out, one number per request; only with a log."""

    def checked(self) -> Ran:
        """Raises AssertionError unless every request was answered."""
        assert not self.killed, "the supervisor was killed"
        assert not self.died, self.died
        assert self.error is None, self.error
        return self


class Forks:
    """Supervisors in the place `where` of a lab, one at a time."""

    def __init__(self, lab: Lab, where: str = "host") -> None:
        self._process = lab.popen(
            where,
            [sys.executable, "-m", "tests.system.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)

    def run(
        self,
        *requests: Facts,
        crash_at: str = "",
        log: Path | None = None,
        strace: Sequence[str] = (),
    ) -> Ran:
        """Start a supervisor, have it carry out `requests`, and wait for its end.

        `log` is written anew with the crash points that were passed. `strace` is a command line
        to which `-p PID` is added; it follows the supervisor from its first moment to its end.
        """
        order = {
            "requests": requests,
            "crash_at": crash_at,
            "log": str(log or ""),
            "strace": list(strace),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        facts = json.loads(self._process.stdout.readline())
        for key in ("answers", "steps"):
            facts[key] = tuple(facts.get(key, ()))
        return Ran(**facts)


def main() -> None:
    import chainctl.daemon  # noqa: F401 (so that no child has to)

    for line in sys.stdin:
        sys.stdout.write(json.dumps(_fork(json.loads(line))) + "\n")
        sys.stdout.flush()


def _fork(order: Facts) -> Facts:
    reading, writing = os.pipe()
    waiting, starting = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.close(starting)
        os.read(waiting, 1)
        _supervise(order, writing)
    os.close(writing)
    os.close(waiting)
    tracer = _attach(order["strace"], pid) if order["strace"] else None
    os.close(starting)
    with os.fdopen(reading) as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    if tracer is not None:
        # The VPN clients live on, and it would follow them.
        tracer.terminate()
        tracer.communicate()
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return {"killed": True}
    if code or not said:
        return {"died": said or f"it ended with status {code}"}
    facts: Facts = json.loads(said)
    return facts


def _attach(command: list[str], pid: int) -> subprocess.Popen[str]:
    tracer = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    assert "attached" in said, said
    return tracer


def _supervise(order: Facts, writing: int) -> None:
    """In the child. Never returns."""
    code = 1
    try:
        os.environ["CHAINCTL_CRASH_AT"] = order["crash_at"]
        os.environ["CHAINCTL_CRASH_LOG"] = order["log"]
        facts = _carry_out(order["requests"], Path(order["log"]) if order["log"] else None)
        os.write(writing, json.dumps(facts, default=str).encode())
        code = 0
    except BaseException:
        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _carry_out(requests: list[Facts], log: Path | None) -> Facts:
    from chainctl import daemon
    from chainctl.settings import Settings

    settings = Settings.load()
    done: Facts = {"answers": [], "steps": []}
    if log is not None:
        log.write_text("")
    with daemon.supervisor(settings) as running:
        passed = 0
        for request in requests:
            try:
                done["answers"].append(_answer(running, request, log))
            except Exception as error:
                done["error"] = daemon.describe_error(error)
                break
            if log is not None:
                total = log.read_text().count(":after ")
                done["steps"].append(total - passed)
                passed = total
        idle = running.idle
    if idle:
        daemon.sweep_out(settings)
    return done


def _answer(running: Any, request: Facts, log: Path | None) -> Any:
    from chainctl import daemon

    match request:
        case {"do": "crash_in", "steps": int(steps), "moment": str(moment)}:
            assert log is not None, "what was passed already stands in the log"
            passed = log.read_text().count(":after ")
            os.environ["CHAINCTL_CRASH_AT"] = f"{passed + steps}:{moment}"
            return None
        case {"do": "freeze", "lab": str(name), "server": str(server)}:
            Lab.load(name).server(server).freeze()
            return None
        case {"do": "adopt"}:
            return running.adopt_all()
        case {"do": "settle"}:
            return _settle(running, **{key: request[key] for key in request if key != "do"})
        case _:
            return daemon.answer(running, request, lambda message: None)


def _settle(running: Any, *, away_from: str = "", standby: str = "") -> Facts:
    """The status once the chain is open with one tunnel a hop, none of them to the server
    `away_from`, but for the hop `standby`, which is to have a second one.
    """
    deadline = time.monotonic() + _SETTLED
    while True:
        (facts,) = running.status()
        if _is_settled(facts, away_from, standby):
            # What the status tells already may still be at work: this waits for its turn.
            with contextlib.suppress(ChainctlError):
                running.open_gate(facts["chain"], lambda *_: None)
            (facts,) = running.status()
            if _is_settled(facts, away_from, standby):
                return dict(facts)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not settled within {_SETTLED:g} s: {facts}")
        time.sleep(0.02)


def _is_settled(facts: Facts, away_from: str, standby: str) -> bool:
    hops = facts["hops"]
    return (
        facts["posture"] == "open"
        and bool(hops)
        and all(hop["draining_seconds"] is None for hop in hops)
        and all(hop["server"] != away_from for hop in hops)
        and all(bool(hop["standby"]) == (hop["hop"] == standby) for hop in hops)
    )


if __name__ == "__main__":
    main()
