"""One chain's worker: the only thread that changes anything of that chain.

Requests and observations put a reason into its queue; it walks gather, resolve, observe,
plan, execute. In between it looks at the chain every `_TICK` seconds: refreshes the gate for as
long as every hop is proved, and compares what is there with what should be. Start, repair
and recovery after a crash are the same walk.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chainctl.errors import ChainctlError, ChangeServer, RefusedByPolicy
from chainctl.host import clock
from chainctl.model.chain import WIREGUARD_OVERHEAD, Chain, Hop
from chainctl.model.doctor_lan import judge_lan
from chainctl.model.event import Event
from chainctl.model.findings import Level, Wish
from chainctl.model.parts import Part
from chainctl.net.facts import read_lan
from chainctl.net.layout import layout
from chainctl.store.journal import Journal, Wanted
from chainctl.supervisor.crash import CrashPoints
from chainctl.supervisor.execute import Executor, Progress
from chainctl.supervisor.gather import Gathered, gather
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.path_mtu import judge_sizes, sizes_to_try
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, Step, plan
from chainctl.supervisor.resolve import resolve, with_path_mtu
from chainctl.supervisor.sniffer import Place, Reading, Sniffer
from chainctl.supervisor.words import describe_part, describe_plan, hop_of

FRESH = 2.0
"""Seconds after which a hop that was asked and did not answer counts as failing."""
GATE_TIMEOUT = 4.0
"""Seconds after the last proof at which the kernel shuts the gate by itself."""
PATIENCE = 12.0
"""Seconds a hop has to answer for the first time; a lost first handshake costs 5."""

_TICK = 0.5
_LOOK_EVERY = 1.0
_SIZES_PATIENCE = 0.5
"""Seconds for an answer to a packet of each size, before all are sent again."""
_SIZES_ROUNDS = 3
"""A packet that is lost for another reason is not to make the MTU smaller."""


@dataclass
class _Request:
    act: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class _PathMtuIsSmaller(Exception):
    """Every MTU of the chain has to be worked out again before the gate may open."""

    def __init__(self, path_mtu: int) -> None:
        self.path_mtu = path_mtu


@dataclass(frozen=True)
class State:
    """What the worker knows of its chain; replaced as a whole, so that others may read it."""

    chain: Chain | None = None
    proved_at: float = 0.0
    """Boot time at which every hop had answered; 0: never."""
    opened_at: float = 0.0
    closed_since: float = 0.0
    problem: ChainctlError | None = None
    """Why it is shut, when something went wrong."""
    repairs: tuple[tuple[float, str], ...] = ()
    """(boot time, what was found wrong and mended), newest last."""
    notes: tuple[str, ...] = ()


class Worker:
    """`submit` requests from any thread; `state` and `readings` may be read from any thread."""

    def __init__(
        self,
        name: str,
        *,
        machine: Machine,
        journal: Journal,
        sniffer: Sniffer,
        crash: CrashPoints,
    ) -> None:
        self.name = name
        self.state = State(closed_since=clock.boot_seconds())
        self._machine = machine
        self._journal = journal
        self._sniffer = sniffer
        self._executor = Executor(machine, journal, crash, chain_name=name)
        self._queue: queue.Queue[_Request | None] = queue.Queue()
        self._looked_at = 0.0
        self._retry_at = 0.0
        self._failures = 0
        self._started = clock.boot_seconds()
        self._thread = threading.Thread(target=self._run, name=f"chain {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the chain stays as it is, and its gate shuts when the proof is old."""
        self._queue.put(None)
        self._thread.join()
        self._sniffer.forget_all(f"{self.name}/")

    def up(self, file: Path, progress: Progress) -> None:
        self._submit(lambda: self._up(file, progress))

    def adopt(self) -> None:
        """Take over a chain that was wanted before this supervisor started."""
        self._queue.put(_Request(self._adopt))

    def down(self, progress: Progress) -> None:
        self._submit(lambda: self._down(progress))

    def close(self) -> None:
        """Shut the gate before anything else, whatever the worker is doing."""
        wanted = self._journal.want(self.name, closed=True)
        self._machine.close_gate(self.name, wanted.number)
        self._submit(self._closed_by_hand)

    def open(self, progress: Progress) -> None:
        self._submit(lambda: self._open_by_hand(progress))

    def readings(self) -> dict[str, Reading]:
        chain = self.state.chain
        if chain is None:
            return {}
        return {hop.name: self._sniffer.reading(self._key(hop)) for hop in chain.hops}

    def _submit(self, act: Callable[[], None]) -> None:
        request = _Request(act)
        self._queue.put(request)
        request.done.wait()
        if request.error is not None:
            raise request.error

    def _run(self) -> None:
        while True:
            try:
                request = self._queue.get(timeout=_TICK)
            except queue.Empty:
                request = _Request(self._look)
            if request is None:
                return
            try:
                request.act()
            except ChainctlError as error:
                request.error = error
                self._remember_problem(error)
            except Exception as error:
                # A fault of ours must not end the thread that keeps the gate: shut and say so.
                request.error = error
                self._unexpected(error)
            finally:
                request.done.set()

    def _up(self, file: Path, progress: Progress) -> None:
        begun = time.monotonic()
        gathered = gather(file, self._machine, self._journal)
        progress("file", gathered.summary, time.monotonic() - begun)
        for notice in gathered.notices:
            progress("note", notice, 0.0)
        wanted = self._journal.want(self.name, file=file, up=True, number=gathered.facts.number)
        self._look_around(gathered)
        self._reconcile(gathered, wanted, progress, asked=True)

    def _adopt(self) -> None:
        wanted = self._journal.chain(self.name)
        if wanted is not None and wanted.up:
            gathered = gather(wanted.file, self._machine, self._journal)
            self._reconcile(gathered, wanted, _silent)

    def _look_around(self, gathered: Gathered) -> None:
        """Find out beside the work what bypasses or disturbs the gateway on the LAN."""

        def look() -> None:
            lan, network = gathered.spec.lan, gathered.facts.network
            seen = read_lan(network, lan.interface, lan.address.ip)
            wish = Wish(lan.interface, lan.address, own_macs=self._machine.lan_macs(self.name))
            notes = tuple(
                f"[{finding.code}] {finding.text}"
                for finding in judge_lan(network, seen, wish)
                if finding.level >= Level.WARNING
            )
            self._update(notes=notes)
            for text in notes:
                self._event("lan_note", text)

        threading.Thread(target=look, name=f"lan of {self.name}", daemon=True).start()

    def preview(self, file: Path) -> dict[str, Any]:
        """What `up` would do, in words; nothing is changed."""
        gathered = gather(file, self._machine, self._journal)
        chain = resolve(gathered.spec, gathered.facts)
        before = self.state.chain
        self._machine.configure(chain)
        try:
            steps = plan(layout(chain), self._observe(chain.number, chain))
        finally:
            if before is not None:
                self._machine.configure(before)
        return describe_plan(chain, before, steps)

    def _reconcile(
        self, gathered: Gathered, wanted: Wanted, progress: Progress, *, asked: bool = False
    ) -> None:
        chain = resolve(gathered.spec, gathered.facts)
        self._journal.remember(
            self.name, "selection", {hop.name: hop.tunnel.server for hop in chain.hops}
        )
        names = {name: str(address) for name, address in gathered.facts.names.items()}
        self._journal.remember(self.name, "names", names)
        self._journal.remember(self.name, "forwarded_before", chain.uplink.forwarded_before)
        self._journal.remember(self.name, "uplink", chain.uplink.interface)
        self._converge(chain, wanted, progress, asked=asked)

    def _converge(
        self, chain: Chain, wanted: Wanted, progress: Progress, *, asked: bool = False
    ) -> None:
        """Walk the spine until the measured path MTU no longer changes the chain.

        `asked`: somebody wants the change, so what differs is no repair.
        """
        while True:
            self._machine.configure(chain)
            self._update(chain=chain)
            try:
                self._walk(chain, wanted, progress, asked=asked)
            except _PathMtuIsSmaller as smaller:
                chain, asked = with_path_mtu(chain, smaller.path_mtu), True
            else:
                return

    def _walk(self, chain: Chain, wanted: Wanted, progress: Progress, *, asked: bool) -> None:
        begun = time.monotonic()
        if self._machine.gate_until(chain.number) <= clock.boot_ns():
            progress("shut", "LAN closed before anything starts", time.monotonic() - begun)
        steps = plan(
            layout(chain),
            self._observe(chain.number, chain),
            hops=[hop.number for hop in chain.hops],
            gate_open=self._gate_is_open(chain),
            open_wanted=not wanted.closed,
        )
        if not asked:
            self._say_repairs(chain, steps)
        self._executor.execute(
            steps,
            number=chain.number,
            chain=chain,
            prove=lambda number: self._prove(chain, chain.hops[number - 1], progress),
            open_gate=lambda: self._open_gate(chain, progress),
        )
        for hop in chain.hops:
            self._sniffer.watch(self._key(hop), self._place(chain, hop))
        self._update(problem=None)
        self._failures = 0

    def _prove(self, chain: Chain, hop: Hop, progress: Progress) -> None:
        """Two-way through the hop's tunnel, hence through every hop outside it."""
        begun = time.monotonic()
        key = self._key(hop)
        self._sniffer.watch(key, self._place(chain, hop))
        asked = clock.boot_seconds()
        reading = self._sniffer.prove(key, patience=PATIENCE)
        took = time.monotonic() - begun
        if reading.last_heard < asked:
            progress(hop.name, f"{hop.tunnel.server} does not answer", took)
            raise self._no_answer(chain, hop, reading, took)
        if hop.number == 1:
            self._check_path_mtu(chain, hop)
        progress(hop.name, f"{hop.tunnel.server} answers both ways", took)

    def _check_path_mtu(self, chain: Chain, guard: Hop) -> None:
        """Once for each path. What is remembered was seen to pass."""
        known = self._journal.recall(self.name, "path_mtus", {})
        if chain.path in known:
            return
        largest = chain.tunnel_mtu(guard, guard.tunnel)
        answered: set[int] = set()
        for _ in range(_SIZES_ROUNDS):
            answered |= self._sniffer.measure(
                self._key(guard), sizes_to_try(largest), patience=_SIZES_PATIENCE
            )
            if largest in answered:
                break
        smaller = judge_sizes(largest, answered)
        if smaller is not None:
            raise _PathMtuIsSmaller(smaller)
        # A profile with a small MTU of its own says less about the path than it could carry.
        if answered and largest + WIREGUARD_OVERHEAD == chain.path_mtu:
            self._journal.remember(self.name, "path_mtus", {**known, chain.path: chain.path_mtu})

    def _no_answer(self, chain: Chain, hop: Hop, reading: Reading, seconds: float) -> ChainctlError:
        status = self._machine.tunnel_status(chain, hop)
        shaken = status is not None and status.handshake is not None
        what = "shakes hands but carries no packets" if shaken else "does not answer"
        return ChangeServer(
            "C411" if shaken else "C410",
            f"{hop.tunnel.server} {what}: {reading.unanswered} asked, 0 heard for {seconds:.1f} s",
            hint="check the key and the address in its profile, or choose another server",
            where=f"hop {hop.name}",
        )

    def _open_gate(self, chain: Chain, progress: Progress) -> None:
        proved = self._proved_at(chain)
        until = int((proved + GATE_TIMEOUT) * 1e9)
        self._machine.open_gate(chain, until)
        self._update(proved_at=proved, opened_at=clock.boot_seconds(), problem=None)
        progress("open", "LAN traffic passes through every hop", 0.0)

    def _look(self) -> None:
        """Keep the gate open while every hop is proved; mend what is not as it should be."""
        wanted = self._journal.chain(self.name)
        if wanted is None or not wanted.up:
            return
        now, chain = clock.boot_seconds(), self.state.chain
        if chain is None:
            if now >= self._retry_at:
                self._adopt()
        elif self.state.problem is None:
            self._keep_gate(chain, wanted, now)
            if now - self._looked_at >= _LOOK_EVERY:
                self._looked_at = now
                self._repair(chain, wanted)
        elif now >= self._retry_at:
            self._converge(chain, wanted, _silent)

    def _keep_gate(self, chain: Chain, wanted: Wanted, now: float) -> None:
        if wanted.closed:
            if self._gate_is_open(chain):
                self._machine.close_gate(chain.name, chain.number)
            return
        proved = self._proved_at(chain)
        if now - proved < FRESH:
            was_open = self._gate_is_open(chain)
            self._machine.open_gate(chain, int((proved + GATE_TIMEOUT) * 1e9))
            self._update(proved_at=proved)
            if not was_open:
                self._update(opened_at=now)
                self._event("gate_opened", "every hop answers again")
        elif self._gate_is_open(chain) and self._failing(chain) is not None:
            hop = self._failing(chain)
            assert hop is not None
            self._machine.close_gate(chain.name, chain.number)
            self._update(closed_since=now)
            self._event("gate_closed", self._silence(chain, hop), hop=hop.name, code="C410")

    def _repair(self, chain: Chain, wanted: Wanted) -> None:
        steps = plan(layout(chain), self._observe(chain.number, chain))
        if steps:
            self._converge(chain, wanted, _silent)

    def _say_repairs(self, chain: Chain, steps: tuple[Step, ...]) -> None:
        """A chain that was up before and needs steps was tampered with, or a client died."""
        if not self.state.proved_at:
            return
        for step in steps:
            match step:
                case Make(part):
                    what = f"{describe_part(part)} was missing"
                case Change(_, part):
                    what = f"{describe_part(part)} was not as it should be"
                case Remove(part):
                    what = f"{describe_part(part)} did not belong there"
                case CloseGate() | Prove() | OpenGate():
                    continue
            self._event("repaired", what, hop=hop_of(chain, part), code="N501")
            self._update(repairs=(*self.state.repairs[-19:], (clock.boot_seconds(), what)))

    def _observe(self, number: int, chain: Chain | None) -> list[Part]:
        return self._machine.observe(self.name, number, chain, self._made_to_forward())

    def _made_to_forward(self) -> str:
        """The uplink, if it forwards only since this chain came."""
        before = self._journal.recall(self.name, "forwarded_before")
        if before is None:
            return self._machine.uplink_made_to_forward(self.name)
        return "" if before else str(self._journal.recall(self.name, "uplink", ""))

    def _down(self, progress: Progress) -> None:
        begun = time.monotonic()
        wanted = self._journal.want(self.name, up=False)
        number = wanted.number
        self._executor.carry_out("shut", lambda: self._machine.close_gate(self.name, number))
        self._sniffer.forget_all(f"{self.name}/")
        progress("shut", "LAN closed first", time.monotonic() - begun)
        begun = time.monotonic()
        others = [other for other in self._journal.chains() if other.name != self.name]
        have = self._observe(number, self.state.chain)
        steps = plan((), have, shared=self._machine.shared_parts() if others else ())
        self._executor.execute(
            steps, number=number, chain=self.state.chain, prove=_never, open_gate=_never_open
        )
        self._executor.carry_out(
            "clean", lambda: self._machine.clean(self.name, number, last=not others)
        )
        self._event("chain_down", "the chain is down")
        self._journal.forget(self.name)
        self.state = State(closed_since=clock.boot_seconds())
        progress("down", f"{len(steps)} parts taken away", time.monotonic() - begun)

    def _closed_by_hand(self) -> None:
        # Once more: this thread may have refreshed the gate after `close` shut it.
        wanted = self._journal.want(self.name, closed=True)
        self._machine.close_gate(self.name, wanted.number)
        self._update(closed_since=clock.boot_seconds())
        self._event("gate_closed", "shut by hand", code="N502")

    def _open_by_hand(self, progress: Progress) -> None:
        wanted = self._journal.chain(self.name)
        if wanted is None or not wanted.up or self.state.chain is None:
            raise RefusedByPolicy("C501", f"the chain {self.name} is not up", hint="chainctl up")
        wanted = self._journal.want(self.name, closed=False)
        self._converge(self.state.chain, wanted, progress, asked=True)

    def _proved_at(self, chain: Chain) -> float:
        """When the hop that was heard longest ago was heard."""
        return min(self._sniffer.reading(self._key(hop)).last_heard for hop in chain.hops)

    def _failing(self, chain: Chain) -> Hop | None:
        """The outermost hop that is silent; the ones inside it wait for it."""
        now = clock.boot_seconds()
        for hop in chain.hops:
            if now - self._sniffer.reading(self._key(hop)).last_heard >= FRESH:
                return hop
        return None

    def _silence(self, chain: Chain, hop: Hop) -> str:
        reading = self._sniffer.reading(self._key(hop))
        seconds = clock.boot_seconds() - reading.last_heard
        outer = chain.hops[hop.number - 2].name if hop.number > 1 else ""
        fine = f"; {outer} is fine" if outer else ""
        return f"{reading.unanswered} sent, 0 heard for {seconds:.1f} s{fine}"

    def _gate_is_open(self, chain: Chain) -> bool:
        return self._machine.gate_until(chain.number) > clock.boot_ns()

    def _remember_problem(self, error: ChainctlError) -> None:
        """Try again later, more and more rarely, at most every 30 s."""
        self._failures += 1
        self._retry_at = clock.boot_seconds() + min(30.0, 0.5 * 2**self._failures)
        self._update(problem=error, closed_since=self.state.closed_since or clock.boot_seconds())

    def _unexpected(self, error: Exception) -> None:
        traceback.print_exception(error)
        wanted = self._journal.chain(self.name)
        if wanted is not None:
            self._machine.close_gate(self.name, wanted.number)
        self._event("fault", f"{type(error).__name__}: {error}", code="C599")
        self._remember_problem(
            ChainctlError("C599", f"a fault in chainctl: {error!r}", hint="please report it")
        )

    def _event(self, kind: str, text: str, *, hop: str = "", code: str = "") -> None:
        self._journal.append(Event(kind, self.name, text, hop=hop, code=code))

    def _place(self, chain: Chain, hop: Hop) -> Place:
        tunnel, ns = hop.tunnel, chain.namespace(hop)
        link = tunnel.slot.link
        device = self._machine.device(ns, link)
        return Place(ns, link, tunnel.address, tunnel.resolver, tunnel.endpoint, device)

    def _key(self, hop: Hop) -> str:
        return f"{self.name}/{hop.name}"

    def _update(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]


def _silent(what: str, text: str, seconds: float) -> None:
    """Repairs have nobody to report to but the journal."""


def _never(number: int) -> None:
    raise AssertionError(f"hop {number} is proved while a chain goes down")


def _never_open() -> None:
    raise AssertionError("the gate opens while a chain goes down")
