"""One chain's worker: the only thread that changes anything of that chain.

Requests and observations put a reason into its queue; it walks gather, resolve, observe,
plan, execute. In between it looks at the chain every `_TICK` seconds: refreshes the gate for as
long as every hop is proved, and compares what is there with what should be. Start, repair
and recovery after a crash are the same walk.
"""

from __future__ import annotations

import queue
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from chainctl.errors import ChainctlError, ChangeServer, MendFile, RefusedByPolicy
from chainctl.host import clock
from chainctl.model.chain import Chain, Hop, Tunnel
from chainctl.model.doctor_lan import judge_lan
from chainctl.model.event import Event
from chainctl.model.findings import Level, Wish
from chainctl.model.parts import Part
from chainctl.model.selection import HopSelection
from chainctl.net.facts import read_lan
from chainctl.net.layout import layout
from chainctl.net.uplink import find_fault
from chainctl.store.journal import Journal, Wanted
from chainctl.supervisor.choose import Candidate, Strike, order_candidates
from chainctl.supervisor.crash import CrashPoints
from chainctl.supervisor.execute import Executor, Progress
from chainctl.supervisor.gather import Gathered, gather
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.path_mtu import judge_sizes, sizes_to_try
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, Step, plan
from chainctl.supervisor.resolve import candidates, resolve, with_path_mtu
from chainctl.supervisor.sniffer import Place, Reading, Sniffer
from chainctl.supervisor.verdict import outermost_dead
from chainctl.supervisor.words import describe_part, describe_plan, hop_of

FRESH = 2.0
"""Seconds after which a hop that was asked and did not answer counts as failing."""
GATE_TIMEOUT = 4.0
"""Seconds after the last proof at which the kernel shuts the gate by itself."""
PATIENCE = 12.0
"""Seconds a hop has to answer for the first time; a lost first handshake costs 5."""

ROTATIONS_PER_HOP, ROTATIONS_PER_CHAIN = 6, 12
"""Changes of server within an hour after which a chain stays shut and says so: whoever can
make servers fail must not choose the next one (Tor proposal 241).
"""
DRAIN = 2.0
"""Seconds a replaced tunnel still takes what its server sends back."""
DRAIN_EXIT = 600.0
"""Seconds for which connections that began over a replaced exit go on over it."""

_CANDIDATE_PATIENCE = 1.5
"""Seconds a server has to answer that comes up beside the one it may replace."""
_UPLINK_PAUSE = 1.0
"""Seconds between two looks at an uplink that is down."""
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
    uplink_fault: str = ""
    """What is wrong with the way to the first server; "" when nothing is known."""
    repairs: tuple[tuple[float, str], ...] = ()
    """(boot time, what was found wrong and mended), newest last."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What may come of a hop. Seconds everywhere."""

    since: float
    """How long its server has served it."""
    candidates: int
    """Servers of its pool that could take over now."""
    quarantine: dict[str, int]
    """Servers passed over for their failures -> seconds left."""
    draining: float | None
    """Time left for connections that began over the server before."""


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
        self._gathered: Gathered | None = None
        self._alarmed = threading.Event()
        self._dice = random.SystemRandom()
        self._changes: list[tuple[float, str]] = []
        self._fruitless = 0
        self._next_rotation = 0.0
        self._retiring: dict[str, float] = {}
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

    def outlook(self) -> dict[str, Outlook]:
        """By hop: since when its server serves it, and what could follow."""
        chain, gathered = self.state.chain, self._gathered
        if chain is None or gathered is None:
            return {}
        since = self._journal.recall(self.name, "since", {})
        strikes, now = self._strikes(), clock.wall_seconds()
        found = {}
        for hop in chain.hops:
            pool = candidates(gathered.spec.hops[hop.number - 1], gathered.facts.names)
            struck = {
                candidate.server: round(strikes[candidate.address].released_in(now))
                for candidate in pool
                if candidate.address in strikes
            }
            resting = {server: seconds for server, seconds in struck.items() if seconds > 0}
            left = len(self._candidates(chain, hop)) - len(resting.keys() - {hop.tunnel.server})
            retires = self._retiring.get(hop.name)
            found[hop.name] = Outlook(
                since=now - float(since.get(hop.name, ["", now])[1]),
                candidates=max(0, left),
                quarantine=resting,
                draining=retires - clock.boot_seconds() if retires else None,
            )
        return found

    def sweep(self) -> None:
        """Ask every hop now, and come back when each has answered or had its time."""
        chain = self.state.chain
        if chain is None:
            raise RefusedByPolicy("C501", f"the chain {self.name} is not up", hint="chainctl up")
        for hop in chain.hops:
            self._sniffer.prove(self._key(hop), patience=FRESH)

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
        self._gathered = self._settle(gathered, chain)
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
        self._watch(chain)
        self._update(problem=None)
        self._failures = 0

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

    def _watch(self, chain: Chain) -> None:
        """Ask every hop through the tunnel that carries traffic, and no tunnel that is gone."""
        wanted = {self._key(hop): hop for hop in chain.hops}
        for key, hop in wanted.items():
            self._sniffer.watch(key, self._place(chain, hop, hop.tunnel), self._alarm)
            handle = self._machine.watch_client(chain.client_name(hop, hop.tunnel.slot))
            if handle is not None:
                self._sniffer.watch_end(key, handle, self._client_ended)
        self._sniffer.keep_only(f"{self.name}/", wanted)

    def _client_ended(self) -> None:
        """On the sniffer's thread: a VPN client is gone, so look at everything at once."""
        self._looked_at = 0.0
        self._alarm()

    def _alarm(self) -> None:
        """On the sniffer's thread: have a look now, not at the next tick."""
        if not self._alarmed.is_set():
            self._alarmed.set()
            self._queue.put(_Request(self._look))

    def _prove(self, chain: Chain, hop: Hop, progress: Progress) -> None:
        """Two-way through the hop's tunnel, hence through every hop outside it."""
        begun = time.monotonic()
        key = self._key(hop)
        self._sniffer.watch(key, self._place(chain, hop, hop.tunnel), self._alarm)
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
        answered, smaller = self._try_sizes(self._key(guard), chain.tunnel_mtu(guard, guard.tunnel))
        if smaller is not None:
            raise _PathMtuIsSmaller(smaller)
        if answered:
            self._journal.remember(self.name, "path_mtus", {**known, chain.path: chain.path_mtu})

    def _try_sizes(self, key: str, largest: int) -> tuple[bool, int | None]:
        """Whether any packet came through, and the path MTU when it is smaller than thought."""
        answered: set[int] = set()
        for _ in range(_SIZES_ROUNDS):
            answered |= self._sniffer.measure(key, sizes_to_try(largest), patience=_SIZES_PATIENCE)
            if largest in answered:
                break
        return bool(answered), judge_sizes(largest, answered)

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
        self._alarmed.clear()
        wanted = self._journal.chain(self.name)
        if wanted is None or not wanted.up:
            return
        now, chain = clock.boot_seconds(), self.state.chain
        if chain is None:
            if now >= self._retry_at:
                self._adopt()
        elif self.state.problem is None:
            self._keep_gate(chain, wanted, now)
            dead = outermost_dead([self._sniffer.reading(self._key(h)) for h in chain.hops], now)
            over = [hop for hop in chain.hops if self._retiring.get(hop.name, now + 1) <= now]
            if over:
                self._retire(chain, over[0])
            elif now - self._looked_at >= _LOOK_EVERY:
                self._looked_at = now
                self._repair(chain, wanted)
            elif dead is not None and now >= self._next_rotation:
                self._fail_over(chain, chain.hops[dead])
        elif now >= self._retry_at:
            self._converge(chain, wanted, _silent)

    def _keep_gate(self, chain: Chain, wanted: Wanted, now: float) -> None:
        if wanted.closed:
            if self._gate_is_open(chain):
                self._machine.close_gate(chain.name, chain.number)
            return
        proved = self._proved_at(chain)
        if now - proved < FRESH:
            if self.state.uplink_fault and not self._silent_since(chain.hops[0]):
                self._event("uplink_back", "the uplink works again")
                self._update(uplink_fault="")
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
        ours = self._journal.recall(self.name, "forwarded_before") is False
        uplink = self._journal.recall(self.name, "uplink", "") if ours else ""
        return self._machine.observe(self.name, number, chain, uplink)

    def rotate(self, hop: str, to: str, progress: Progress) -> None:
        """Replace the server of `hop` by `to`, or by whichever comes next, now."""
        self._submit(lambda: self._rotate_by_hand(hop, to, progress))

    def _rotate_by_hand(self, name: str, to: str, progress: Progress) -> None:
        chain = self.state.chain
        if chain is None or self.state.problem is not None:
            raise RefusedByPolicy(
                "C420", f"the chain {self.name} is not up and proved", hint="chainctl status"
            )
        hop = next((hop for hop in chain.hops if hop.name == name), None)
        if hop is None:
            known = ", ".join(hop.name for hop in chain.hops)
            raise MendFile("C421", f"there is no hop {name!r}: this chain has {known}")
        choice = [one for one in self._candidates(chain, hop) if to in ("", one.server)]
        if not choice:
            raise ChangeServer(
                "C422",
                f"{to} is not a server this hop may use now" if to else "no other server is left",
                hint="chainctl status",
                where=f"hop {name}",
            )
        if not self._replace(chain, hop, choice[0], planned=True, progress=progress):
            raise ChangeServer(
                "C423",
                f"{choice[0].server} does not answer; {hop.tunnel.server} stays",
                hint="choose another with --to",
                where=f"hop {name}",
            )

    def _fail_over(self, chain: Chain, hop: Hop) -> None:
        """Replace the server of a dead hop by the first candidate that answers."""
        if hop.number == 1 and self._uplink_is_at_fault(chain):
            return
        if not self._silent_since(hop):
            return
        self._event("hop_dead", self._silence(chain, hop), hop=hop.name, code="C410")
        for candidate in self._candidates(chain, hop):
            if self._rotations_left(hop) <= 0:
                self._hold(hop, "too many changes of server within an hour")
                return
            if self._replace(chain, hop, candidate, planned=False, progress=_silent):
                # Only now: while nothing answers at all, no server is to blame.
                self._strike(hop.tunnel.endpoint)
                self._fruitless = 0
                return
            if not self._silent_since(hop):
                self._event("hop_back", f"{hop.tunnel.server} answers again", hop=hop.name)
                return
        self._hold(hop, "no server of its pool answers")

    def _uplink_is_at_fault(self, chain: Chain) -> bool:
        """Ask before a guard is blamed: whoever can cut the line must not choose the next one."""
        fault = find_fault(chain.uplink.interface)
        if fault and fault != self.state.uplink_fault:
            self._event("uplink_down", fault, code="C425")
        self._update(uplink_fault=fault)
        self._next_rotation = clock.boot_seconds() + _UPLINK_PAUSE
        return bool(fault)

    def _hold(self, hop: Hop, why: str) -> None:
        """Stay shut and try again later, at random moments more and more rarely."""
        self._fruitless += 1
        pause = self._dice.uniform(0.5, min(60.0, 2.0**self._fruitless))
        self._next_rotation = clock.boot_seconds() + pause
        self._event("rotation_held", f"{why}; next try in {pause:.0f} s", hop=hop.name, code="C424")

    def _candidates(self, chain: Chain, hop: Hop) -> tuple[Candidate, ...]:
        gathered = self._gathered
        assert gathered is not None, "a chain was resolved from it"
        return order_candidates(
            candidates(gathered.spec.hops[hop.number - 1], gathered.facts.names),
            taken={tunnel.endpoint for each in chain.hops for tunnel in each.tunnels},
            strikes=self._strikes(),
            now=clock.wall_seconds(),
            dice=self._dice,
        )

    def _replace(
        self,
        chain: Chain,
        hop: Hop,
        candidate: Candidate,
        *,
        planned: bool,
        progress: Progress,
    ) -> bool:
        """Make before break: the candidate comes up in the other slot and has to answer before
        one nft transaction sends traffic its way. What was heard meanwhile vetoes a repair.
        """
        begun = time.monotonic()
        if hop.candidate is not None:
            # The other slot is still draining: what is left of it ends now.
            self._retire(chain, hop)
            chain, hop = self._chain, self._chain.hops[hop.number - 1]
        trial = self._adjusted(chain, hop, lambda chosen: chosen.with_candidate(candidate.server))
        beside = trial.hops[hop.number - 1]
        tunnel = beside.candidate
        assert tunnel is not None
        key, place = self._key(beside, tunnel), self._place(trial, beside, tunnel)
        self._sniffer.watch(key, place, self._alarm)
        reading = self._sniffer.prove(key, patience=_CANDIDATE_PATIENCE)
        back = not self._silent_since(hop)
        if not reading.last_heard or (back and not planned):
            if not reading.last_heard:
                if planned or hop.number > 1:
                    self._strike(tunnel.endpoint)
                self._event("candidate_silent", f"{tunnel.server} does not answer", hop=hop.name)
            self._adjusted(trial, hop, HopSelection.alone)
            self._watch(self._chain)
            return False
        if hop.number == 1:
            self._remember_path(trial, beside, tunnel)
        switched = self._adjusted(trial, hop, HopSelection.switched)
        took = time.monotonic() - begun
        self._event(
            "server_replaced",
            f"{hop.tunnel.server} -> {tunnel.server}",
            hop=hop.name,
            code="N420" if planned else "N421",
        )
        progress(hop.name, f"{hop.tunnel.server} -> {tunnel.server}", took)
        self._changes.append((clock.boot_seconds(), hop.name))
        if not planned:
            self._retire(switched, hop)
        else:
            drain = DRAIN_EXIT if hop.number == len(chain.hops) else DRAIN
            self._retiring[hop.name] = clock.boot_seconds() + drain
        return True

    def _remember_path(self, chain: Chain, guard: Hop, tunnel: Tunnel) -> None:
        """Another guard may be reached over a path that takes less."""
        path = chain.path_to(tunnel.endpoint)
        known = self._journal.recall(self.name, "path_mtus", {})
        if path not in known:
            key = self._key(guard, tunnel)
            answered, smaller = self._try_sizes(key, chain.tunnel_mtu(guard, tunnel))
            if answered:
                known[path] = smaller or chain.path_mtu
                self._journal.remember(self.name, "path_mtus", known)

    def _retire(self, chain: Chain, hop: Hop) -> None:
        """Take away the tunnel that no longer carries traffic."""
        self._retiring.pop(hop.name, None)
        self._adjusted(chain, hop, HopSelection.alone)
        self._watch(self._chain)

    def _adjusted(
        self, chain: Chain, hop: Hop, change: Callable[[HopSelection], HopSelection]
    ) -> Chain:
        """The chain with another selection for one hop, carried out beside running traffic.

        Compared with what should be there, not with what is: the next look finds the rest.
        """
        gathered = self._gathered
        assert gathered is not None, "a chain was resolved from it"
        chosen = change(gathered.facts.selection[hop.name])
        known = self._journal.recall(self.name, "path_mtus", {})
        gathered = gathered.with_selection(hop.name, chosen).with_path_mtus(known)
        new = resolve(gathered.spec, gathered.facts)
        self._machine.configure(new)
        self._gathered = self._settle(gathered, new)
        self._update(chain=new)
        self._executor.execute(
            plan(layout(new), layout(chain), beside=True),
            number=new.number,
            chain=new,
            prove=_never,
            open_gate=_never_open,
        )
        return new

    @property
    def _chain(self) -> Chain:
        chain = self.state.chain
        assert chain is not None, "only asked while a chain is up"
        return chain

    def _strike(self, server: IPv4Address) -> None:
        strikes = self._strikes()
        now = clock.wall_seconds()
        strikes[server] = strikes.get(server, Strike(0.0, now)).another(now)
        values = {str(at): [strike.weight, strike.at] for at, strike in strikes.items()}
        self._journal.remember("", "strikes", values)

    def _strikes(self) -> dict[IPv4Address, Strike]:
        """Shared by all chains of this machine."""
        kept = self._journal.recall("", "strikes", {})
        return {IPv4Address(at): Strike(*values) for at, values in kept.items()}

    def _rotations_left(self, hop: Hop) -> int:
        hour = clock.boot_seconds() - 3600
        self._changes = [(at, name) for at, name in self._changes if at > hour]
        of_hop = sum(name == hop.name for _, name in self._changes)
        return min(ROTATIONS_PER_HOP - of_hop, ROTATIONS_PER_CHAIN - len(self._changes))

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

    def _silent_since(self, hop: Hop) -> float:
        """Boot time of its oldest unanswered question; 0 when it was heard after the last."""
        return self._sniffer.reading(self._key(hop)).silent_since

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

    def _place(self, chain: Chain, hop: Hop, tunnel: Tunnel) -> Place:
        ns = chain.namespace(hop)
        link = tunnel.slot.link
        device = self._machine.device(ns, link)
        return Place(ns, link, tunnel.address, tunnel.resolver, tunnel.endpoint, device)

    def _key(self, hop: Hop, tunnel: Tunnel | None = None) -> str:
        return f"{self.name}/{hop.name}/{(tunnel or hop.tunnel).slot.name}"

    def _update(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]


def _silent(what: str, text: str, seconds: float) -> None:
    """Repairs have nobody to report to but the journal."""


def _never(number: int) -> None:
    raise AssertionError(f"hop {number} is proved while a chain goes down")


def _never_open() -> None:
    raise AssertionError("the gate opens while a chain goes down")
