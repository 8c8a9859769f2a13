"""One chain's worker: the only thread that changes anything of that chain.

Requests and observations put a reason into its queue; it walks gather, resolve, observe,
plan, execute. In between it refreshes the gate for as long as every hop is proved, and compares
what is there with what should be whenever it is told that something may have changed (`disturb`).
Start, repair and recovery after a crash are the same walk.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from chainctl.errors import (
    ChainctlError,
    ChangeServer,
    RefusedByPolicy,
    StepFailed,
    UnlockSecret,
)
from chainctl.host import clock
from chainctl.model.chain import Chain, Engine, Hop
from chainctl.model.clients import DockerSeen, differences
from chainctl.model.doctor_lan import judge_lan
from chainctl.model.fault import Fault
from chainctl.model.findings import Level, Wish
from chainctl.model.parts import Forwarding, Key, NftTable, Part
from chainctl.model.selection import HopSelection
from chainctl.net.facts import read_lan
from chainctl.net.layout import layout
from chainctl.store.journal import Journal, Wanted
from chainctl.supervisor.clients import notes_on_containers
from chainctl.supervisor.connecting import LOGIN_PAUSE, SLICE, AddressIsNew
from chainctl.supervisor.crash import CrashPoints
from chainctl.supervisor.ended import begins_elsewhere
from chainctl.supervisor.execute import Executor, Progress
from chainctl.supervisor.gather import Gathered, gather
from chainctl.supervisor.machine import Machine, Prolonging
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, Step, plan
from chainctl.supervisor.resolve import candidates, resolve, with_containers, with_path_mtu
from chainctl.supervisor.rotating import Rotating
from chainctl.supervisor.rotation import Rotations
from chainctl.supervisor.sniffer import Reading, Sniffer
from chainctl.supervisor.suspicion import one_way
from chainctl.supervisor.ticks import Ticks
from chainctl.supervisor.verdict import FRESH, outermost_dead, outermost_failing
from chainctl.supervisor.words import describe_part, describe_plan, hop_of

_CONTAINERS_PAUSE = 300.0
"""Seconds until Docker is asked again for what it refused, unless something is heard of it."""
_MOST_ADDRESSES = 3
"""Times a hop may say another address before nobody listens any more."""
_MOST_BROKEN_AGAIN = 10
"""Times a repair begins anew because something else was broken meanwhile."""
GATE_TIMEOUT = 4.0
"""Seconds after the last proof at which the kernel shuts the gate by itself."""
_PROLONG_AT = 2.0
"""Seconds left at which the gate of a chain at rest is prolonged."""
_LASTING = 1.0
"""Seconds left below which nobody is told that the gate is open without another proof."""
_REST = 300.0
"""Seconds after which a worker looks at a chain at rest for itself."""
THOROUGH = 30.0
"""Seconds after which a thorough look trusts nothing that was read before."""
_FRESH_PATIENCE = 0.5
"""Seconds for an answer before a gate opens that is shut, more where one usually takes longer."""
_UNTOUCHED_PATIENCE = 6.5
"""Seconds for an answer where no tunnel that carries traffic was touched. At most its handshake
is too old, and a new one gets lost: WireGuard tries again after 5 s (REKEY_TIMEOUT)."""


@dataclass
class _Request:
    act: Callable[[], None]
    asked: bool = False
    """By somebody who hears what came of it."""
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class _BrokenAgain(Exception):
    """Something else was changed while hops were proved: nobody could answer."""


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
    containers: ChainctlError | None = None
    """Why containers that came since are not served."""


@dataclass(frozen=True)
class Rest:
    """How long a server is passed over."""

    seconds: int
    why: str
    """The class of its last fault, as `Fault` has it; "" when nobody wrote it down."""


@dataclass(frozen=True)
class Outlook:
    """What may come of a hop. Seconds everywhere."""

    since: float
    """How long its server has served it."""
    candidates: int
    """Servers of its pool that could take over now."""
    quarantine: dict[str, Rest]
    """Servers passed over for their failures."""
    standby: str | None
    """The server that is up beside and can take over at once."""
    rotates: float | None
    """Time until its server is replaced by plan."""
    draining: float | None
    """Time left for connections that began over the server before."""


class Worker(Rotating):
    """`submit` requests from any thread; `state` and `readings` may be read from any thread."""

    def __init__(
        self,
        name: str,
        *,
        machine: Machine,
        journal: Journal,
        sniffer: Sniffer,
        ticks: Ticks,
        crash: CrashPoints,
        tick: Callable[[], float] = lambda: 0.5,
    ) -> None:
        """`tick`: seconds between two refreshes of the gate."""
        self.name = name
        self._tick = tick
        self.state = State(closed_since=clock.boot_seconds())
        self._machine = machine
        self._journal = journal
        self._sniffer = sniffer
        self._ticks = ticks
        self._executor = Executor(machine, journal, crash, chain_name=name)
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        """Held by who does anything about the chain: this thread, or the keeper of the gates."""
        self.rests = False
        """Everything was as it should be, so that nothing is to be done but to keep the gate."""
        self._rested = False
        """The same before what is being done now."""
        self._looked_at = 0.0
        """Boot time of the last look at the chain."""
        self._seen_at = clock.boot_seconds()
        """Boot time at which somebody last saw to it."""
        self._compared_at = 0.0
        self._disturbed = threading.Event()
        self._thoroughly = threading.Event()
        self._retry_at = 0.0
        self._refused_at = -math.inf
        self._refused: DockerSeen | None = None
        self._failures = 0
        self._gathered = None
        self._keys: Sequence[str] = ()
        self._alarmed = threading.Event()
        self._rotations = Rotations(name, journal)
        self._retiring = {}
        self._uplink_fault = ""
        self._lossy_since = {}
        self._doubted = {}
        self._connected = {}
        self._moved = {}
        self._shaken = {}
        self._swept_every = 0.0
        self._held_open_at = 0.0
        self._unproved = ""
        self._broken_again = 0
        self._shut_by_hand = False
        self._failed: ChainctlError | None = None
        self._thread = threading.Thread(target=self._run, name=f"chain {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the chain stays as it is, and its gate shuts when the proof is old."""
        self._forget_ticks()
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
        """Shut the gate before anything else, whatever the worker is doing.

        Nor does anybody wait long for it: who opens a gate reads the journal after that. The
        kernel comes first and this thread's own memory second, since the journal's disk may be
        full. Raises MendHost C512 when it was shut but not written down.
        """
        self._shut_by_hand = True
        known = self.state.chain
        if known is not None:
            self._machine.close_gate(self.name, known.number)
        wanted = self._journal.want(self.name, closed=True)
        self._machine.close_gate(self.name, wanted.number)
        self._submit(self._closed_by_hand, patience=1.0)

    def open(self, progress: Progress) -> None:
        self._submit(lambda: self._open_by_hand(progress))

    def readings(self) -> dict[str, Reading]:
        chain = self.state.chain
        if chain is None:
            return {}
        return {hop.name: self._sniffer.reading(self._key(hop)) for hop in chain.hops}

    def outlook(self) -> dict[str, Outlook]:
        """By hop: since when its server serves it, and what could follow."""
        chain, gathered = self.state.chain, self._gathered
        if chain is None or gathered is None:
            return {}
        since = self._journal.recall(self.name, "since", {})
        strikes, now = self._rotations.strikes(), clock.wall_seconds()
        planned = self._rotations.plan(gathered.spec, chain)
        found = {}
        # An `up` with another number of hops may be under way.
        for hop, wish in zip(chain.hops, gathered.spec.hops, strict=False):
            pool = candidates(wish, gathered.facts.names)
            struck = {
                candidate.server: Rest(
                    round(strikes[candidate.address].released_in(now)),
                    strikes[candidate.address].why,
                )
                for candidate in pool
                if candidate.address in strikes
            }
            resting = {server: rest for server, rest in struck.items() if rest.seconds > 0}
            resting.pop(hop.tunnel.server, None)
            usable = [one for one in pool if one.server not in resting]
            serving = {tunnel.server for tunnel in hop.tunnels}
            taken = {
                tunnel.endpoint for each in chain.hops if each != hop for tunnel in each.tunnels
            }
            left = sum(one.address not in taken and one.server not in serving for one in usable)
            retires = self._retiring.get(hop.name)
            stands_by = hop.candidate is not None and retires is None
            rotates = planned.get(hop.name)
            found[hop.name] = Outlook(
                since=now - float(since.get(hop.name, ["", now])[1]),
                candidates=left,
                standby=hop.candidate.server if hop.candidate and stands_by else None,
                rotates=rotates - now if rotates else None,
                quarantine=resting,
                draining=retires - clock.boot_seconds() if retires else None,
            )
        return found

    def sweep(self) -> None:
        """Ask every hop now, and come back when each has answered or had its time."""
        chain = self.state.chain
        if chain is None:
            raise RefusedByPolicy("C501", f"the chain {self.name} is not up", hint="chainctl up")
        self._sniffer.sweep([self._key(hop) for hop in chain.hops], patience=FRESH)

    @property
    def gathered(self) -> Gathered | None:
        """What the chain was last worked out from; None while it is not up."""
        return self._gathered

    @property
    def watched(self) -> tuple[str, ...]:
        """What the sniffer knows its hops by."""
        chain = self.state.chain
        return tuple(self._key(hop) for hop in chain.hops) if chain else ()

    def disturb(self) -> None:
        """Something of the chain may have been changed: compare what is with what should be."""
        self._disturbed.set()
        self._alarm()

    def look_thoroughly(self) -> None:
        """The same, without trusting that every change is heard of."""
        self._thoroughly.set()
        self.disturb()

    def _submit(self, act: Callable[[], None], *, patience: float | None = None) -> None:
        request = _Request(act, asked=True)
        self._queue.put(request)
        request.done.wait(patience)
        if request.error is not None:
            raise request.error

    def _run(self) -> None:
        while True:
            try:
                request = self._queue.get(timeout=_REST if self.rests else self._tick())
            except queue.Empty:
                request = _Request(self._look)
            if request is None:
                return
            with self._turn:
                self._rested, self.rests = self.rests, False
                self._act(request)
                self._seen_at = clock.boot_seconds()

    def _act(self, request: _Request) -> None:
        try:
            request.act()
        except ChainctlError as error:
            request.error = error
            if not request.asked or self._is_about_the_chain(error):
                self._remember_problem(error)
        except Exception as error:
            # A fault of ours must not end the thread that keeps the gate: shut and say so.
            request.error = error
            self._unexpected(error)
        finally:
            request.done.set()

    # What the keeper of the gates asks, from its thread.

    def hold(self) -> bool:
        """Whether the worker rests; then it does nothing until `release`."""
        if not self.rests or not self._turn.acquire(blocking=False):
            return False
        if self.rests and not self._alarmed.is_set() and self._queue.empty():
            return True
        self._turn.release()
        return False

    def release(self) -> None:
        self._turn.release()

    @property
    def wants(self) -> bool:
        """It rests, and its gate has to be prolonged. Wakes it when there is more to it than
        that: a hop is silent, or loses too much.
        """
        if not self.rests:
            return False
        self._seen_at = now = clock.boot_seconds()
        until = self.state.proved_at + GATE_TIMEOUT
        if until - now > _PROLONG_AT:
            return False  # Nothing of it can be silent for long.
        vitals = self._sniffer.vitals(self._keys)
        if vitals.silent >= FRESH or one_way(vitals.loss) > self._known.spec.health.loss:
            self._alarm()
            return False
        return vitals.proved + GATE_TIMEOUT > until

    def due(self, gate_until: Callable[[int], int], wanted: Wanted | None) -> Prolonging | None:
        """Until when the gate may be open; None, and the worker is awake, when it is shut."""
        chain, now = self._chain, clock.boot_seconds()
        vitals = self._sniffer.vitals(self._keys)
        is_open = self._may_pass(wanted) and gate_until(chain.number) > now * 1e9
        if not is_open or vitals.silent >= FRESH or now >= vitals.proved + GATE_TIMEOUT:
            self._alarm()
            return None
        return self._prolonging(chain, vitals.proved)

    def kept(self, prolonged: Prolonging, wanted: Wanted | None) -> None:
        """The gate was prolonged. `wanted` is from after that: `close` may act by itself."""
        self._update(proved_at=prolonged.proved)
        if not self._may_pass(wanted):
            self._machine.close_gate(self.name, prolonged.number)
            self._alarm()

    def wake(self) -> None:
        """Something is not as before: have a look."""
        self._alarm()

    def _up(self, file: Path, progress: Progress) -> None:
        begun = time.monotonic()
        gathered = gather(file, self._machine, self._journal)
        progress("file", gathered.summary, time.monotonic() - begun)
        for notice in gathered.notices:
            progress("note", notice, 0.0)
        wanted = self._journal.want(self.name, file=file, up=True, number=gathered.facts.number)
        self._look_around(gathered)
        self._reconcile(gathered, wanted, progress, asked=True)
        self._refused = None
        self._update(containers=None)
        for note in notes_on_containers(self._chain, self._known.facts.docker):
            progress("note", note, 0.0)

    def _adopt(self) -> None:
        wanted = self._journal.chain(self.name)
        if wanted is not None and wanted.up:
            gathered = gather(wanted.file, self._machine, self._journal)
            self._reconcile(gathered, wanted, _silent)

    def _look_around(self, gathered: Gathered) -> None:
        """Find out beside the work what bypasses or disturbs the gateway on the LAN."""

        def look() -> None:
            network = gathered.facts.network
            notes = tuple(
                f"[{finding.code}] {finding.text}"
                for number, lan in enumerate(gathered.spec.lans)
                if not (lan.mode and lan.mode.own)
                for finding in judge_lan(
                    network,
                    read_lan(network, lan.interface, lan.address.ip),
                    Wish(lan.interface, lan.address, own_macs=self._own_macs(number)),
                )
                if finding.level >= Level.WARNING
            )
            self._update(notes=notes)
            for text in notes:
                self._say("lan_note", text)

        threading.Thread(target=look, name=f"lan of {self.name}", daemon=True).start()

    def _own_macs(self, number: int) -> frozenset[str]:
        return frozenset([self._machine.lan_mac(self.name, f"lan{number}")])

    def preview(self, file: Path) -> dict[str, Any]:
        """What `up` would do, in words; nothing is changed."""
        outcome: Future[dict[str, Any]] = Future()

        def look() -> None:
            # What is wrong with the file is no problem of the chain.
            try:
                outcome.set_result(self._preview(file))
            except ChainctlError as error:
                outcome.set_exception(error)

        # In turn with everything else: the machine is told of another chain for a moment.
        self._submit(look)
        return outcome.result()

    def _preview(self, file: Path) -> dict[str, Any]:
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
        self._gathered = self._settle(gathered, chain)
        self._rotations.will_try(chain.hops[0], chain.hops[0].tunnel.endpoint)
        names = {name: str(address) for name, address in gathered.facts.names.items()}
        self._journal.remember(self.name, "names", names)
        self._leave_uplink(chain)
        if chain.uplink.place is None:
            self._journal.remember(self.name, "forwarded_before", chain.uplink.forwarded_before)
        self._journal.remember(self.name, "uplink", chain.uplink.interface)
        self._journal.remember(self.name, "runtime", chain.runtime.value)
        self._converge(chain, wanted, progress, asked=asked)
        if chain.uplink.place is not None:
            # What a chain with NAT had made to forward was taken back: it is the host's again.
            self._journal.remember(self.name, "forwarded_before", None)
        self._journal.remember(self.name, "uplink_left", "")

    def _leave_uplink(self, chain: Chain) -> None:
        """Keep in mind that the uplink of before forwards only for us, until that is undone."""
        before = self._journal.recall(self.name, "uplink", chain.uplink.interface)
        ours = self._journal.recall(self.name, "forwarded_before") is False
        if before != chain.uplink.interface and ours:
            self._journal.remember(self.name, "uplink_left", before)

    def _converge(
        self, chain: Chain, wanted: Wanted, progress: Progress, *, asked: bool = False
    ) -> None:
        """Walk the spine until nothing that is measured or told changes the chain any more.

        `asked`: somebody wants the change, so what differs is no repair.
        """
        progress, told = _once(progress), 0
        self._broken_again = 0
        while True:
            self._machine.configure(chain)
            self._update(chain=chain)
            try:
                self._walk(chain, wanted, progress, asked=asked)
            except _BrokenAgain:
                self._broken_again += 1
            except _PathMtuIsSmaller as smaller:
                chain, asked = with_path_mtu(chain, smaller.path_mtu), True
            except AddressIsNew:
                told += 1
                if told > _MOST_ADDRESSES * len(chain.hops):
                    self._failed = ChangeServer(
                        "C419", "a server gives another address each time it is asked"
                    )
                    raise self._failed from None
                found = resolve(self._known.spec, self._known.facts)
                chain, asked = with_path_mtu(found, chain.path_mtu), True
            except ChainctlError as error:
                self._failed = error
                raise
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
            proved=self._is_proved(chain),
        )
        # A chain that was up before and needs steps was tampered with, or a client died.
        repairs = not asked and self.state.proved_at > 0
        self._machine.take_leave(steps)
        patience = self._known.spec.health.patience
        if not _touches_what_carries(chain, steps):
            patience = min(patience, _UNTOUCHED_PATIENCE)
        self._unproved = ""
        self._executor.execute(
            steps,
            number=chain.number,
            chain=chain,
            prove=lambda number: self._prove(chain, chain.hops[number - 1], patience, progress),
            open_gate=lambda: self._open_gate(chain, progress),
            done=partial(self._say_repaired, chain) if repairs else _unsaid,
        )
        self._watch(chain)
        # What was made is not heard of before it was looked at.
        self._disturbed.set()
        self._update(problem=None)
        self._failures = 0
        self._take_stock(chain)

    def _take_stock(self, chain: Chain) -> None:
        """Guards that carry traffic are kept; a second tunnel that no longer stands by goes."""
        gathered = self._gathered
        if gathered is None:
            return
        self._plan_ahead(chain)
        for hop, wish in zip(chain.hops, gathered.spec.hops, strict=True):
            self._rotations.carries(hop, wish)
            spare = hop.candidate
            if spare is not None and not (wish.standby and spare.server != hop.tunnel.server):
                self._retiring.setdefault(hop.name, clock.boot_seconds())

    def _settle(self, gathered: Gathered, chain: Chain) -> Gathered:
        """Write down what `resolve` chose, so that the next walk chooses the same."""
        for hop in chain.hops:
            servers = {tunnel.slot: tunnel.server for tunnel in hop.tunnels}
            gathered = gathered.with_selection(hop.name, HopSelection(hop.active, servers))
        chosen = gathered.facts.selection
        names = {hop.name for hop in chain.hops}
        known, now = self._journal.recall(self.name, "since", {}), clock.wall_seconds()
        since = {
            hop.name: known[hop.name]
            if known.get(hop.name, ["", 0.0])[0] == hop.tunnel.server
            else [hop.tunnel.server, now]
            for hop in chain.hops
        }
        self._journal.remember(self.name, "since", since)
        self._journal.remember(
            self.name,
            "selection",
            {name: chosen[name].to_json() for name in chosen if name in names},
        )
        return gathered

    def _plan_ahead(self, chain: Chain) -> None:
        """Set the next sweep, and the moment at which a server is to be replaced by plan."""
        spec = self._known.spec
        if self._swept_every != spec.health.sweep:
            self._swept_every = spec.health.sweep
            self._ticks.every(f"{self.name}/sweep", spec.health.sweep, self._time_to_sweep)
        planned = self._rotations.plan(spec, chain)
        if planned:
            self._ticks.once(f"{self.name}/rotate", min(planned.values()), self._alarm)

    def _forget_ticks(self) -> None:
        self._swept_every = 0.0
        for what in ("sweep", "rotate"):
            self._ticks.forget(f"{self.name}/{what}")

    def _time_to_sweep(self) -> None:
        """On the scheduler's thread."""
        self._queue.put(_Request(self._sweep_all))

    def _sweep_all(self) -> None:
        """Ask every hop now, however well the chain is."""
        for key in self.watched:
            self._sniffer.ask_now(key)
        now = clock.boot_seconds()
        if self._rested and now - self._looked_at < _REST and now - self._seen_at < FRESH:
            self.rests = True  # Who is silent is noticed by the keeper of the gate.
        else:
            self._look()

    def _watch(self, chain: Chain) -> None:
        """Ask every hop through the tunnel that carries traffic, and no tunnel that is gone."""
        wanted = {}
        for hop in chain.hops:
            standing_by = hop.candidate if hop.name not in self._retiring else None
            for tunnel in filter(None, (hop.tunnel, standing_by)):
                if tunnel.address is None:
                    continue
                key = self._key(hop, tunnel)
                wanted[key] = hop
                self._sniffer.watch(key, self._place(chain, hop, tunnel), self._alarm)
        for hop in chain.hops:
            key = self._key(hop)
            handle = self._machine.watch_client(chain.client_name(hop, hop.tunnel.slot))
            if handle is not None:
                self._sniffer.watch_end(key, handle, self._client_ended)
            holder = self._machine.watch_holder(chain.namespace(hop))
            if holder is not None:
                wanted[f"{key}, held"] = hop
                self._sniffer.watch_end(f"{key}, held", holder, self._client_ended)
        self._sniffer.keep_only(f"{self.name}/", wanted)
        self._keys = [self._key(hop) for hop in chain.hops]
        self._sniffer.line_up(f"{self.name}/", self._keys)

    def _client_ended(self) -> None:
        """On the sniffer's thread: a VPN client is gone, so look at everything at once."""
        self.disturb()

    def _alarm(self) -> None:
        """On the sniffer's thread: have a look now, not at the next tick."""
        if not self._alarmed.is_set():
            self._alarmed.set()
            self._queue.put(_Request(self._look))

    def _prove(self, chain: Chain, hop: Hop, patience: float, progress: Progress) -> None:
        """Two-way through the hop's tunnel, hence through every hop outside it."""
        begun = time.monotonic()
        try:
            reading = self._ask_until_heard(chain, hop, patience)
        except ChainctlError as error:
            progress(hop.name, error.message, time.monotonic() - begun)
            if isinstance(error, ChangeServer):
                self._unproved = hop.name
            raise
        took = time.monotonic() - begun
        if reading is None:
            self._unproved = hop.name
            progress(hop.name, f"{hop.tunnel.server} does not answer", took)
            raise self._no_answer(chain, hop, self._reading(hop), took)
        if hop.number == 1:
            self._check_path_mtu(chain, hop)
        progress(hop.name, f"{hop.tunnel.server} answers both ways", took)

    def _ask_until_heard(self, chain: Chain, hop: Hop, patience: float) -> Reading | None:
        """None: not within so many seconds; what has to connect first has all it may take."""
        key, asked = self._key(hop), clock.boot_seconds()
        waits = hop.tunnel.engine is Engine.OPENVPN
        patience = self._known.spec.health.patience if waits else patience
        deadline = self._sniffer.awake_seconds() + patience
        outer = chain.hops[: hop.number - 1]
        if not waits and any(each.tunnel.engine is Engine.OPENVPN for each in outer):
            # Its first attempt was made when there was no way out of the hop outside it yet.
            status = self._machine.tunnel_status(chain, hop)
            if status is not None and status.handshake is None:
                self._machine.shake_anew(chain, hop, hop.tunnel)
        while (left := deadline - self._sniffer.awake_seconds()) > 0:
            if waits and not self._connect(chain, hop, hop.tunnel, patience=left):
                raise AddressIsNew
            self._sniffer.watch(key, self._place(chain, hop, hop.tunnel), self._alarm)
            # A connection that was there before may be of no use any more, and say so only now.
            reading = self._sniffer.prove(key, patience=min(left, SLICE))
            if reading.answered >= asked:
                return reading
            if self._is_broken_again(chain):
                raise _BrokenAgain
            self._doubt(chain, hop, asked)
        return None

    def _is_broken_again(self, chain: Chain) -> bool:
        """Since it was compared. Whoever breaks it all the time does not keep the worker here."""
        if not self._disturbed.is_set() or self._broken_again >= _MOST_BROKEN_AGAIN:
            return False
        return bool(self._differences(chain))

    def _differences(self, chain: Chain) -> tuple[Step, ...]:
        """Steps from what is to what should be."""
        # Before anything is read: what changes meanwhile is looked at again.
        self._disturbed.clear()
        self._compared_at = clock.boot_seconds()
        oldest = THOROUGH if self._thoroughly.is_set() else math.inf
        self._thoroughly.clear()
        return plan(layout(chain), self._observe(chain.number, chain, oldest=oldest))

    def _check_path_mtu(self, chain: Chain, guard: Hop) -> None:
        """Once for each path. What is remembered was seen to pass."""
        known = self._journal.recall(self.name, "path_mtus", {})
        if chain.path in known:
            return
        largest = chain.tunnel_mtu(guard, guard.tunnel)
        answered, smaller = self._try_sizes(self._key(guard), guard.tunnel, largest)
        if smaller is not None:
            raise _PathMtuIsSmaller(smaller)
        # A profile with a small MTU of its own says less about the path than it could carry.
        if answered and largest + guard.tunnel.overhead == chain.path_mtu:
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
        self._let_pass(chain, self._proved_at(chain))
        self._update(opened_at=clock.boot_seconds(), closed_since=0.0, problem=None)
        progress("open", "LAN traffic passes through every hop", 0.0)

    def _let_pass(self, chain: Chain, proved: float) -> None:
        """Until the proof is too old, or somebody shuts the gate."""
        if self._shut_by_hand:
            return
        self._machine.open_gate(self._prolonging(chain, proved))
        if not self._may_pass(self._journal.chain(self.name)):
            # `close` acts by itself while this process is stopped, perhaps on the line above.
            self._machine.close_gate(chain.name, chain.number)
        self._update(proved_at=proved)

    def _prolonging(self, chain: Chain, proved: float) -> Prolonging:
        return Prolonging(self.name, chain.number, proved, int((proved + GATE_TIMEOUT) * 1e9))

    def _may_pass(self, wanted: Wanted | None) -> bool:
        """Nobody has shut the gate by hand, as far as is known or written down."""
        return wanted is not None and not wanted.closed and not self._shut_by_hand

    def _hold_open(self) -> None:
        """Refresh an open gate of a chain that is proved, while something else is waited for;
        never open one that is shut.
        """
        chain, now = self.state.chain, clock.boot_seconds()
        if (
            chain is None
            or now - self._held_open_at < self._tick()
            or not self._gate_is_open(chain)
        ):
            return
        self._held_open_at = now
        if self._failing(chain) is None:
            self._let_pass(chain, self._proved_at(chain))

    def _look(self) -> None:
        """Keep the gate open while every hop is proved; mend what is not as it should be."""
        self._alarmed.clear()
        self._looked_at = clock.boot_seconds()
        wanted = self._journal.chain(self.name)
        if wanted is None or not wanted.up:
            return
        now, chain = clock.boot_seconds(), self.state.chain
        if chain is None:
            if now >= self._retry_at:
                self._adopt()
            return
        chain = self._follow_containers(chain)
        if self.state.problem is None:
            self._look_after(chain, wanted, now)
        elif now >= self._retry_at:
            self._recover(chain, wanted)

    def _look_after(self, chain: Chain, wanted: Wanted, now: float) -> None:
        # This process was stopped, or the machine slept: who knows what was done.
        if now - self._seen_at > FRESH and self._repair(chain, wanted):
            return
        if self._change_over(chain):
            chain = self._chain
        self._keep_gate(chain, wanted, now)
        changed = self._tend(chain)
        if changed is not None:
            self._take_new_addresses(chain, changed, wanted)
            return
        if self._retire_what_is_over(chain):
            chain = self._chain
        dead = outermost_dead(
            [self._sniffer.reading(self._key(h)) for h in chain.hops],
            now,
            threshold=self._known.spec.health.phi,
        )
        if self._disturbed.is_set() or self._is_silent_for_reasons_unknown(chain, dead):
            self._repair(chain, wanted)
        elif dead is not None:
            if not self._held():
                self._fail_over(chain, chain.hops[dead])
        elif self._gate_is_open(chain):
            self.rests = not self._rotate_what_is_due(chain) and self._may_rest(chain)

    def _follow_containers(self, chain: Chain) -> Chain:
        """Let published ports lead where their containers are, and the network of the chain's
        containers join Docker when that is there again. Beside running traffic, and whatever
        else is wrong: what devices of the LAN have of containers does not leave.
        """
        gathered, now = self._gathered, clock.boot_seconds()
        if gathered is None or not chain.has_containers:
            return chain
        self._machine.follow_docker(self.name, gathered.facts.docker)
        before, seen = gathered.facts.docker, self._machine.see_docker(self.name)
        waits = seen == self._refused and now - self._refused_at < _CONTAINERS_PAUSE
        if seen == before or waits:
            return chain
        after = with_containers(chain, gathered.spec, seen)
        try:
            self._machine.configure(after)
            self._execute(plan(layout(after), layout(chain), beside=True), after)
        except StepFailed as error:
            # Everybody else's traffic goes on.
            self._machine.configure(chain)
            self._refused, self._refused_at = seen, now
            self._update(containers=error.cause)
            return chain
        for kind, text in differences(before.members, seen.members, gathered.spec.clients):
            self._say(kind, text)
        self._gathered = gathered.with_docker(seen)
        self._update(chain=after, containers=None)
        return after

    def _may_rest(self, chain: Chain) -> bool:
        """Nothing is to be done before something happens, or for as long as `_REST`."""
        return not (
            self._retiring
            or self._lossy_since
            or self._uplink_fault
            or self._disturbed.is_set()
            or self._held()
            or chain.has_containers
            # A client of OpenVPN waits to be told to go on, and says so to who asks.
            or any(tunnel.engine is Engine.OPENVPN for hop in chain.hops for tunnel in hop.tunnels)
        )

    def _recover(self, chain: Chain, wanted: Wanted) -> None:
        """Try again. Everything up to the proof of a hop was done before that failed, so the hop
        can get another server beside the silent one, as when it had failed while open.
        """
        if self._unproved and not self._held():
            self._fail_over(chain, self._hop(self._unproved))
        self._converge(self._chain, wanted, _silent)

    def _keep_gate(self, chain: Chain, wanted: Wanted, now: float) -> None:
        if wanted.closed or self._shut_by_hand:
            if self._gate_is_open(chain):
                self._machine.close_gate(chain.name, chain.number)
            return
        was_open = self._gate_is_open(chain)
        failing = self._failing(chain)
        if failing is not None:
            if was_open:
                evidence = self._evidence(chain, failing)
                self._machine.close_gate(chain.name, chain.number)
                self._update(closed_since=now)
                verdict = self._silence(chain, failing, evidence)
                self._say("gate_closed", verdict.text, hop=failing.name, code=verdict.code)
            return
        if not was_open:
            self._say_it_shut_by_itself(chain)
            if self._repair(chain, wanted):
                return  # What was found wrong is mended and proved, and the gate open.
            if clock.boot_seconds() - self._proved_at(chain) >= FRESH:
                # Opened on an old proof it would shut again before the next one.
                usual = self._reading(chain.exit).behaviour.late
                patience = min(FRESH, max(_FRESH_PATIENCE, usual))
                self._sniffer.prove(self._key(chain.exit), patience=patience)
        proved = self._proved_at(chain)
        if clock.boot_seconds() - proved >= (GATE_TIMEOUT if was_open else FRESH):
            return
        if self._uplink_fault and not self._silent_since(chain.hops[0]):
            self._say("uplink_back", "the uplink works again")
            self._uplink_fault = ""
        self._let_pass(chain, proved)
        if self.state.closed_since:
            self._update(closed_since=0.0)
        if not was_open:
            self._update(opened_at=now)
            self._rotations.calm()
            self._say("gate_opened", "every hop answers again")

    def _say_it_shut_by_itself(self, chain: Chain) -> None:
        """Nobody refreshed it: this process, or the machine, stood still."""
        shut_at = self._machine.gate_until(chain.number) / 1e9
        if self.state.closed_since or not shut_at:
            return
        self._update(closed_since=shut_at)
        ago = max(0.0, clock.boot_seconds() - shut_at)
        text = f"shut by itself {ago:.1f} s ago: no proof for {GATE_TIMEOUT:.0f} s"
        self._say("gate_closed", text, code="N503")

    def _take_new_addresses(self, chain: Chain, hop: Hop, wanted: Wanted) -> None:
        """Work the chain out again; if the tunnel carries traffic, with the gate shut.

        A server that says an address nobody can have is as good as dead.
        """
        try:
            for tunnel in hop.tunnels:
                if tunnel.engine is Engine.OPENVPN:
                    self._connect(chain, hop, tunnel, patience=FRESH)
        except ChangeServer as error:
            if tunnel is not hop.tunnel:
                # It stands by or drains: what carries traffic has no part in this.
                self._say("standby_lost", error.message, hop=hop.name, code=error.code)
                self._retire(chain, hop)
                return
            self._machine.close_gate(chain.name, chain.number)
            self._say("hop_dead", error.message, hop=hop.name, code=error.code)
            if not self._held():
                self._try_others(chain, hop, clock.boot_seconds(), Fault.CONFIG)
            return
        told = self._known.facts.pushed.get((hop.name, hop.active))
        if told is not None and told.address != hop.tunnel.address:
            self._begin_inside_anew(hop)
        found = resolve(self._known.spec, self._known.facts)
        self._converge(with_path_mtu(found, chain.path_mtu), wanted, _silent, asked=True)

    def _is_silent_for_reasons_unknown(self, chain: Chain, dead: int | None) -> bool:
        """Before a server is blamed, what is here has to be in order."""
        if dead is None:
            return False
        return self._compared_at < self._sniffer.reading(self._key(chain.hops[dead])).silent_since

    def _repair(self, chain: Chain, wanted: Wanted) -> bool:
        """Whether there was something to do."""
        steps = self._differences(chain)
        if not steps:
            return False
        ended = begins_elsewhere(chain, steps, self._connected, clock.wall_seconds())
        if ended is not None and self._begin_elsewhere(chain, ended):
            self._disturbed.set()
        else:
            self._converge(self._chain, wanted, _silent)
        return True

    def _say_repaired(self, chain: Chain, step: Step) -> None:
        match step:
            case Make(part):
                what = f"{describe_part(part)} was missing"
            case Change(_, part):
                what = f"{describe_part(part)} was not as it should be"
            case Remove(part):
                what = f"{describe_part(part)} did not belong there"
            case CloseGate() | Prove() | OpenGate():
                return
        self._say("repaired", what, hop=hop_of(chain, part), code="N501")
        self._update(repairs=(*self.state.repairs[-19:], (clock.boot_seconds(), what)))

    def _observe(self, number: int, chain: Chain | None, *, oldest: float = math.inf) -> list[Part]:
        return self._machine.observe(
            self.name, number, chain, self._made_to_forward(), oldest=oldest
        )

    def _made_to_forward(self) -> tuple[str, ...]:
        """The uplink, if it forwards only since this chain came, and one it had before."""
        before = self._journal.recall(self.name, "forwarded_before")
        if before is None:
            now = self._machine.uplink_made_to_forward(self.name)
        else:
            now = "" if before else str(self._journal.recall(self.name, "uplink", ""))
        left = str(self._journal.recall(self.name, "uplink_left", ""))
        return tuple(sorted({now, left} - {""}))

    def rotate(self, hop: str, to: str, progress: Progress) -> None:
        """Replace the server of `hop` by `to`, or by whichever comes next, now."""
        self._submit(lambda: self._rotate_by_hand(hop, to, progress))

    def _down(self, progress: Progress) -> None:
        begun = time.monotonic()
        if (known := self.state.chain) is not None:
            # Before the journal, whose disk may be full.
            self._machine.close_gate(self.name, known.number)
        wanted = self._journal.want(self.name, up=False)
        number = wanted.number
        self._executor.carry_out("shut", lambda: self._machine.close_gate(self.name, number))
        self._forget_ticks()
        self._sniffer.forget_all(f"{self.name}/")
        progress("shut", "LAN closed first", time.monotonic() - begun)
        begun = time.monotonic()
        others = [other for other in self._journal.chains() if other.name != self.name]
        have = self._observe(number, self.state.chain)
        # A journal that was lost knows nothing of a chain that is still there.
        alone = not others and set(self._machine.chains_found()) <= {self.name}
        steps = plan((), have, shared=() if alone else self._shared_with(others))
        self._machine.take_leave(steps)
        self._executor.execute(
            steps, number=number, chain=self.state.chain, prove=_never, open_gate=_never_open
        )
        self._executor.carry_out(
            "clean", lambda: self._machine.clean(self.name, number, last=alone)
        )
        self._say("chain_down", "the chain is down")
        self._journal.forget(self.name)
        self.state = State(closed_since=clock.boot_seconds())
        progress("down", f"{len(steps)} parts taken away", time.monotonic() - begun)

    def _shared_with(self, others: Sequence[Wanted]) -> tuple[Key, ...]:
        """What other chains of this machine need too, and this one must not take along."""
        needed = {
            self._journal.recall(other.name, "uplink")
            for other in others
            if self._journal.recall(other.name, "forwarded_before") is False
        }
        uplinks = [uplink for uplink in self._made_to_forward() if uplink in needed]
        return (*self._machine.shared_parts(), *(Forwarding(uplink).key for uplink in uplinks))

    def _closed_by_hand(self) -> None:
        # Once more: this thread may have refreshed the gate after `close` shut it.
        wanted = self._journal.want(self.name, closed=True)
        self._machine.close_gate(self.name, wanted.number)
        self._update(closed_since=clock.boot_seconds())
        self._say("gate_closed", "shut by hand", code="N502")

    def _open_by_hand(self, progress: Progress) -> None:
        wanted = self._journal.chain(self.name)
        if wanted is None or not wanted.up or self.state.chain is None:
            raise RefusedByPolicy("C501", f"the chain {self.name} is not up", hint="chainctl up")
        wanted = self._journal.want(self.name, closed=False)
        self._shut_by_hand = False
        self._converge(self.state.chain, wanted, progress, asked=True)

    def _proved_at(self, chain: Chain) -> float:
        """When the newest question was asked that was answered through every hop: the exit's.

        Not when it was heard: an answer may have waited while this process was stopped.
        """
        return self._sniffer.reading(self._key(chain.exit)).answered

    def _is_proved(self, chain: Chain) -> bool:
        """An open gate was opened by this supervisor and is not about to shut. What another one has
        left open would shut as soon as one looks, since no hop was heard of yet.
        """
        left = self._machine.gate_until(chain.number) / 1e9 - clock.boot_seconds()
        return self.state.proved_at > 0 and left >= _LASTING

    def _failing(self, chain: Chain) -> Hop | None:
        """The outermost hop that is silent; the ones inside it wait for it."""
        readings = ((hop, self._reading(hop)) for hop in chain.hops)
        return outermost_failing(readings, clock.boot_seconds())

    def _gate_is_open(self, chain: Chain) -> bool:
        return self._machine.gate_until(chain.number) > clock.boot_ns()

    def _is_about_the_chain(self, error: ChainctlError) -> bool:
        """A request that cannot be met leaves a running chain as it was, a plan that failed does
        not.
        """
        failed = isinstance(error, StepFailed) or error is self._failed
        return failed or self.state.chain is None

    def _remember_problem(self, error: ChainctlError) -> None:
        """Try again later, more and more rarely, at most every 30 s."""
        self._failures += 1
        pause = min(30.0, 0.5 * 2 ** min(self._failures, 10))
        if isinstance(error, StepFailed) and isinstance(error.cause, UnlockSecret):
            pause = LOGIN_PAUSE
        self._retry_at = clock.boot_seconds() + pause
        self._update(problem=error, closed_since=self.state.closed_since or clock.boot_seconds())

    def _unexpected(self, error: Exception) -> None:
        traceback.print_exception(error)
        try:
            wanted = self._journal.chain(self.name)
            if wanted is not None:
                self._machine.close_gate(self.name, wanted.number)
        except Exception as worse:
            # Nobody refreshes the gate then, so it shuts by itself.
            traceback.print_exception(worse)
        self._say("fault", f"{type(error).__name__}: {error}", code="C599")
        self._remember_problem(
            ChainctlError("C599", f"a fault in chainctl: {error!r}", hint="please report it")
        )

    @property
    def _chain(self) -> Chain:
        chain = self.state.chain
        assert chain is not None, "only asked while a chain is up"
        return chain

    def _show(self, chain: Chain) -> None:
        self._update(chain=chain)

    def _carry_out(self, gathered: Gathered) -> None:
        wanted = self._journal.chain(self.name)
        assert wanted is not None, "only asked while a chain is up"
        self._reconcile(gathered, wanted, _silent, asked=True)

    @property
    def uplink_fault(self) -> str:
        """What is wrong with the way to the first server; "" when nothing is known."""
        return self._uplink_fault

    def _update(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]


def _once(progress: Progress) -> Progress:
    """The chain is walked again when an address or the path MTU is known; that is one way up."""
    said: set[tuple[str, str]] = set()

    def report(what: str, text: str, seconds: float) -> None:
        if (what, text) not in said:
            said.add((what, text))
            progress(what, text, seconds)

    return report


def _touches_what_carries(chain: Chain, steps: Sequence[Step]) -> bool:
    """Whether a tunnel that carries traffic may have to begin anew. Tables are swapped whole."""
    hops = tuple(replace(hop, tunnels=(hop.tunnel,)) for hop in chain.hops)
    carrying = {part.key for part in layout(replace(chain, hops=hops))}
    return any(
        isinstance(step, Make | Remove) and step.part.key in carrying for step in steps
    ) or any(isinstance(step, Change) and not isinstance(step.new, NftTable) for step in steps)


def _silent(what: str, text: str, seconds: float) -> None:
    """Repairs have nobody to report to but the journal."""


def _unsaid(step: Step) -> None:
    """What somebody asked for is in the journal as the step it is."""


def _never(number: int) -> None:
    raise AssertionError(f"hop {number} is proved while a chain goes down")


def _never_open() -> None:
    raise AssertionError("the gate opens while a chain goes down")
