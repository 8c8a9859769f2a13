"""Asks every hop again and again whether it carries packets both ways.

One thread and one epoll loop for all hops of all chains. Each hop has a raw ICMP socket,
opened inside its namespace and bound to its tunnel. What is asked, in this order until
something answers, after which only that is asked: an echo to the profile's own resolver; an
echo with TTL 1, which the server itself must answer with "time exceeded"; an echo to the
server's public address from inside the tunnel. No third party is asked.

A handshake is no proof: a tunnel with a wrong MTU shakes hands and carries nothing.

Beside asking, it looks at how many packets went into each tunnel and came out of it, often
while somebody uses it: traffic that is sent and not returned is asked about at once.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import select
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import NamedTuple

from chainctl.host import clock, descriptors
from chainctl.host.counters import LinkCounters
from chainctl.host.netns import Namespaces
from chainctl.model.parts import NsName
from chainctl.supervisor.icmp import parse_answer, render_echo
from chainctl.supervisor.pacing import Pace
from chainctl.supervisor.passage import NOTHING_SEEN, Passage
from chainctl.supervisor.suspicion import DEAD, NEVER_HEARD, Behaviour, is_dead, looks_dead
from chainctl.supervisor.tally import Tally

INTERVAL = 0.25
"""Seconds between two questions to a hop that answers."""
BURST_INTERVAL = 0.04
"""Seconds between two questions while an answer is awaited or overdue."""
_SLACK = Pace(0.0, 1000, 0.6)
"""The same while many are asked at once. Hops answer no faster then, as every question through the
third one passes six VPN clients and servers; to ask again meanwhile makes all of them slower. But
a sweep has to find those that do not answer, too.
"""
_BURST_BUSY = 0.025
"""The same while traffic goes out and nothing comes back."""
_BURST = 25
"""Questions of such a burst: then one knows."""
LOOK_BUSY = 0.02
"""Seconds between two looks at the counters of a tunnel that is used."""
LOOK_IDLE = 1.0
"""The same of one that is not, or as long as the pause between two questions: when it is used
again, this is how late it is noticed.
"""
_IDLE_INTERVAL = 1.0
"""Seconds between two questions to the innermost hop of a chain that nobody uses."""
_IDLE = Pace(_IDLE_INTERVAL, 200, 3.0)
"""The same, by the hops of all chains. The gate has to be prolonged by what comes back."""
_SELDOM = Pace(10.0, 5)
"""The same, and between two looks, for the hops outside it: its answers come through them all."""

_USUALLY_LATE = 0.2
"""Seconds; a hop whose answers take longer is asked that much sooner, or its gate would shut
before the next proof is there.
"""

_GRID = Pace(0.05, 600, 1.0)
"""Questions and looks of chains that nobody uses begin at multiples of this: each time this thread
is woken up it costs as much as a few questions.
"""
_TAKEN = Pace(0.05, 2400, 0.25)
"""Their answers are taken at multiples of this."""

_UNLESS_SPARED = 3.0
"""Seconds after which a hop outside is asked when no answer came through it meanwhile."""

_AWAY = 3
"""Questions overdue from which an answer counts as a return."""

_OUTER = "out0"
"""The link of a hop towards its server."""
_NOWHERE = IPv4Address("192.0.2.1")
"""TEST-NET-1 (RFC 5737): with TTL 1 the packet ends at the server in any case."""
_REMEMBERED = 64
"""Questions that are looked at when a hop is silent."""
_ANSWERED_WITHIN = 10.0
"""Seconds for which the answer to a question is still taken as one, however many were asked
since: while an answer is awaited there are 75 of them a second.
"""
_STALL = 0.1
"""Seconds too late from which on this process is taken to have stood still: it was stopped, or
the machine had no time for it, and then none for its VPN clients either."""
_AT_ONCE = 64
"""Packets that are taken from one hop before the others have their turn."""

_LONGEST_HEADERS = 256
"""Bytes of an answer that are looked at: two IP headers with options, two of ICMP."""
_SHORTEST = 1e-6
"""Seconds: no answer takes less, whatever becomes of the wall clock meanwhile."""
_SO_TIMESTAMPNS = 35
"""asm-generic/socket.h: the kernel says when it received a packet, as a struct timespec."""
_TIMESPEC = struct.Struct("@ll")
_ROOM_FOR_STAMP = socket.CMSG_SPACE(_TIMESPEC.size)
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
"""linux/in.h: set DF and ignore what is known of the path, so that sizes can be tried."""


@dataclass(frozen=True)
class Place:
    """Where to ask, and whom."""

    ns: NsName
    link: str
    address: IPv4Address
    resolver: IPv4Address | None
    server: IPv4Address
    probe: IPv4Address | None = None
    """Somebody the user named, asked first."""
    interval: float = INTERVAL
    """Seconds between two questions while all is well."""
    threshold: float = DEAD
    """phi from which the hop looks dead."""
    device: tuple[int, int] = (0, 0)
    """The namespace's inode and the link's index: a socket does not follow to another one of
    the same name.
    """

    @property
    def questions(self) -> tuple[tuple[IPv4Address, int], ...]:
        """(target, TTL), the best first."""
        named = tuple((target, 64) for target in (self.probe, self.resolver) if target)
        return (*named, (_NOWHERE, 1), (self.server, 1))


@dataclass(slots=True)
class Reading:
    """What is known of a hop. Times are seconds since boot; 0 means never.

    Whoever asks for it gets a copy of his own; the sniffer's changes with every packet.
    """

    sent: int = 0
    heard: int = 0
    last_heard: float = 0.0
    answered: float = 0.0
    """When the newest question went out that was answered: older ones without one are lost."""
    silent_since: float = 0.0
    """When the first question went out that nothing has answered since; 0: none."""
    back_since: float = 0.0
    """When it was heard for the first time, or again after a silence out of the ordinary."""
    behaviour: Behaviour = NEVER_HEARD
    questions: tuple[float, ...] = ()
    """When each question went out that came after what was heard last."""
    unanswered: int = 0
    """Questions since something was last heard."""
    sizes: frozenset[int] = frozenset()
    """Packet sizes in bytes that were answered, of those tried by `measure`."""
    recent: tuple[int, int] = (0, 0)
    """(asked, heard) within the last minutes."""
    passage: Passage = NOTHING_SEEN
    """What others sent through the tunnel."""

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0: never heard."""
        return self.behaviour.mean

    def overdue(self, now: float, since: float = 0.0) -> int:
        """Questions asked from `since` on that this hop would have answered by now, as it usually
        is.
        """
        if not self.questions:
            return 0
        late = self.behaviour.late
        return sum(now - asked > late for asked in self.questions if asked >= since)

    def is_away(self, now: float) -> bool:
        """A single question that is overdue is a packet lost."""
        return not self.last_heard or self.overdue(now) >= _AWAY

    def asked_in_vain(self, now: float, heard: float = 0.0) -> float:
        """Seconds; infinite when it was never heard. `heard`: when something came through it for
        a hop further inside.
        """
        if not self.last_heard:
            return math.inf
        if not self.silent_since:
            return 0.0
        return now - max(self.silent_since, self.last_heard, heard)

    def receives(self, now: float) -> bool:
        """Something came out of the tunnel a moment ago, if no answer to us."""
        return now - self.passage.last_received < self.behaviour.late

    def excused(self, seconds: float) -> Reading:
        """For so many of the last seconds nobody here could ask, answer or listen: they are no
        silence. When something was heard stays what it was, since a gate is open on account of it.
        """
        return replace(
            self,
            silent_since=self.silent_since and self.silent_since + seconds,
            questions=tuple(asked + seconds for asked in self.questions),
            passage=self.passage.excused(seconds),
        )

    def looks_dead(self, now: float) -> bool:
        """Others send into the tunnel, we ask, and nothing whatever comes back."""
        return self.passage.unreturned > 0 and looks_dead(
            self.behaviour,
            silence=self.passage.unreturned_for(now),
            unreturned=self.passage.unreturned,
            overdue=self.overdue(now),
        )


class Vitals(NamedTuple):
    """Of all hops of a chain together."""

    silent: float
    """Seconds for which the one that is silent for the longest has been asked in vain; infinite
    when one was never heard.
    """
    proved: float
    """Boot time at which the newest question was asked that came back through all of them."""
    loss: float
    """The largest share of questions without an answer."""


class _Asked(NamedTuple):
    """A packet on its way."""

    at: float
    """Boot time."""
    number: int
    """Index of the question."""
    size: int
    """In bytes; 0: it is counted."""
    stalled: float
    """Seconds of `Sniffer._stalled` by then."""


@dataclass
class _Watch:
    place: Place
    sock: socket.socket
    counters: LinkCounters
    identifier: int
    reading: Reading = field(default_factory=Reading)
    addressed: list[tuple[int, tuple[str, int], int]] = field(default_factory=list)
    """The place's questions as (index, socket address, TTL)."""
    ttl: int = 0
    """What the socket was told last."""
    sequence: int = 0
    due: float = 0.0
    """Boot time of the next question."""
    late: float = math.inf
    """Boot time at which the last one is overdue; an answer to it clears this."""
    tally: Tally = field(default_factory=Tally)
    look: float = 0.0
    """Boot time of the next look at the counters."""
    packets: int = 0
    """Of ours since the last one."""
    works: int | None = None
    """Index of the question that was answered last."""
    pending: dict[int, _Asked] = field(default_factory=dict)
    """By sequence."""
    waiting: int = 0
    """How many callers wait for an answer now: ask fast until there is one."""
    awaited_from: float = 0.0
    """Boot time of the oldest question whose answer is of use to them; infinite: they say when."""
    slack: float = 0.0
    """Seconds the answers to the first questions of a sweep may take, because of the others."""
    scheduled: float = math.inf
    """Boot time of the earliest of its entries in the heap."""
    gone: bool = False
    in_line: bool = False
    """It carries traffic; a standby does not, and has to be warm."""
    outer: tuple[_Watch, ...] = ()
    """Those of the hops outside this one, through which everything goes that goes through it."""
    innermost: _Watch | None = None
    """That of the hop that carries all of the chain's traffic; None: this one."""
    asked: float = 0.0
    """Boot time of the last question of its own."""
    begun: float = 0.0
    """Boot time of the first answer ever. Questions asked before may have waited for the tunnel to
    be there: they say nothing of how fast it is and what it loses.
    """
    through: float = 0.0
    """Boot time of the last answer to a question through a hop further inside."""
    alarm: Callable[[], None] = lambda: None
    """Called when the hop looks dead, from the sniffer's thread; must not block."""


class Sniffer:
    """`watch` a place under a key, read it at any time, `close` at the end."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._watches: dict[str, _Watch] = {}
        self._by_fd: dict[int, _Watch] = {}
        self._ends: dict[str, int] = {}
        self._end_calls: dict[int, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._dice = random.SystemRandom()
        self._heap: list[tuple[float, int, _Watch]] = []
        self._pushed = itertools.count()
        self._hurried: set[int] = set()
        """Descriptors of sockets whose answers are taken as soon as they come."""
        self._awaited: set[int] = set()
        """Those on which an answer is due."""
        self._calls = select.epoll()
        """What cannot wait: who wakes this thread, and processes that end."""
        self._epoll = select.epoll()
        """The sockets, and the calls."""
        self._epoll.register(self._calls.fileno(), select.EPOLLIN)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._calls.register(self._wake_read, select.EPOLLIN)
        self._expected = math.inf
        """Boot time by which the thread should be awake again."""
        self._stalled = 0.0
        """Seconds by which it was late, all in all."""
        self._heard_one = False
        self.taken = threading.Event()
        """Set when answers were taken; whoever waits for that clears it."""
        self._stopped = False
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sniffer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped = True
        self._halt.set()
        self._wake()
        self._thread.join()
        for key in list(self._watches):
            self.forget(key)
        self._epoll.close()
        self._calls.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def watch(self, key: str, place: Place, alarm: Callable[[], None] = lambda: None) -> None:
        """Ask at `place` from now on; what was known under `key` for another place is gone.

        `alarm` is called from this object's thread, again and again while the hop looks dead.
        """
        known = self._watches.get(key)
        if known is not None and known.place == place:
            return
        self.forget(key)
        sock, counters = self._namespaces.call(place.ns, lambda: _open(place))
        with self._changed:
            identifier = self._dice.randrange(1, 1 << 16)
            watch = _Watch(place, sock, counters, identifier, alarm=alarm)
            watch.addressed = [
                (number, (str(target), 0), ttl)
                for number, (target, ttl) in enumerate(place.questions)
            ]
            self._watches[key] = self._by_fd[sock.fileno()] = watch
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._schedule(watch)
        self._wake()

    def line_up(self, prefix: str, keys: Sequence[str]) -> None:
        """Of what is watched under `prefix`, these are the hops of one chain that carry its
        traffic, the guard's first: what comes through one of them came through all before it, so
        a chain that nobody uses is asked through the last one.
        """
        with self._changed:
            watches = [self._watches[key] for key in keys if key in self._watches]
            for key, watch in self._watches.items():
                if key.startswith(prefix):
                    watch.in_line, watch.outer, watch.innermost = False, (), None
            for place, watch in enumerate(watches):
                watch.in_line, watch.outer = True, tuple(watches[:place])
                watch.innermost = watches[-1] if watch is not watches[-1] else None

    def watch_end(self, key: str, pidfd: int, ended: Callable[[], None]) -> None:
        """Call `ended` once when the process of `pidfd` ends; takes the descriptor over."""
        pidfd = descriptors.keep(pidfd)
        with self._changed:
            self._drop_end(key)
            self._ends[key] = pidfd
            self._end_calls[pidfd] = ended
            self._calls.register(pidfd, select.EPOLLIN)

    def _drop_end(self, key: str) -> None:
        pidfd = self._ends.pop(key, None)
        if pidfd is not None:
            if self._end_calls.pop(pidfd, None) is not None:
                self._calls.unregister(pidfd)
            os.close(pidfd)

    def forget(self, key: str) -> None:
        """Close the socket, which would otherwise keep a removed namespace alive."""
        with self._changed:
            self._drop_end(key)
            watch = self._watches.pop(key, None)
            if watch is not None:
                watch.gone = True
                fd = watch.sock.fileno()
                self._epoll.unregister(fd)
                del self._by_fd[fd]
                self._hurried.discard(fd)
                self._awaited.discard(fd)
                watch.sock.close()
                watch.counters.close()

    def forget_all(self, prefix: str) -> None:
        self.keep_only(prefix, ())

    def keep_only(self, prefix: str, keys: Container[str]) -> None:
        """Forget what is watched under `prefix` and not in `keys`."""
        for key in {*self._watches, *self._ends}:
            if key.startswith(prefix) and key not in keys:
                self.forget(key)

    def awake_seconds(self) -> float:
        """A clock for patience with servers: it stands still while this process does."""
        with self._changed:
            now = clock.boot_seconds()
            self._notice_stall(now)
            return now - self._stalled

    def reading(self, key: str) -> Reading:
        with self._changed:
            self._notice_stall(clock.boot_seconds())
            watch = self._watches.get(key)
            if watch is None:
                return Reading()
            return replace(
                watch.reading,
                recent=watch.tally.over(clock.boot_seconds()),
                last_heard=max(watch.reading.last_heard, watch.through),
            )

    def vitals(self, keys: Sequence[str]) -> Vitals:
        """Of the hops of one chain, the guard's first."""
        silent = proved = loss = 0.0
        with self._changed:
            now = clock.boot_seconds()
            self._notice_stall(now)
            for key in keys:
                watch = self._watches.get(key)
                if watch is None:
                    return Vitals(math.inf, 0.0, 0.0)
                reading = watch.reading
                silent = max(silent, reading.asked_in_vain(now, watch.through))
                loss = max(loss, reading.behaviour.loss)
                proved = reading.answered
        return Vitals(silent, proved, loss)

    def excuse(self, key: str) -> None:
        """What it has not answered of late is the fault of a hop further out, and no loss."""
        with self._changed:
            if watch := self._watches.get(key):
                watch.tally.excuse(watch.reading.unanswered)

    def ask_now(self, key: str) -> None:
        """Do not wait for the answer; nothing happens when nobody watches there."""
        with self._changed:
            if key in self._watches:
                self._ask_soon(self._watches[key], 0.0)
                self._wake()

    def prove(self, key: str, *, patience: float) -> Reading:
        """Ask fast until something asked from now on is answered, at most `patience` seconds."""
        return self.sweep([key], patience=patience)[key]

    def sweep(self, keys: Collection[str], *, patience: float) -> dict[str, Reading]:
        """The same for several at the same time; nobody watched is not waited for."""
        with self._changed:
            begun = clock.boot_seconds()
            watches = {key: self._watches[key] for key in keys if key in self._watches}
            slack = _SLACK.of(len(watches))
            for watch in watches.values():
                watch.waiting += 1
                watch.awaited_from = begun
                # Who waits for fewer waits for less.
                watch.slack = slack if watch.waiting == 1 else min(slack, watch.slack)
                self._ask_soon(watch, 0.0)
            self._wake()
            silent = set(watches)

            def all_answered() -> bool:
                # Asked after every answer: whoever has answered is not looked at again.
                silent.difference_update(
                    [key for key in silent if watches[key].reading.answered >= begun]
                )
                return not silent or self._stopped

            try:
                self._wait_for(all_answered, patience)
            finally:
                for watch in watches.values():
                    watch.waiting -= 1
                    if not watch.waiting:
                        watch.slack = 0.0
            return {key: replace(watch.reading) for key, watch in watches.items()}

    def measure(self, key: str, sizes: Sequence[int], *, patience: float) -> frozenset[int]:
        """Which packet sizes (bytes) get through the tunnel of `key`; asked in this order.

        Returns as soon as the first was answered, otherwise after `patience` seconds. Not
        part of what is counted as sent and heard: sizes that do not pass are no loss.
        """
        with self._changed:
            watch = self._watches[key]
            self._notice_stall(clock.boot_seconds())
            watch.reading.sizes = frozenset()
            watch.waiting += 1
            watch.awaited_from = math.inf
            try:
                self._ask_soon(watch, 0.0)
                self._wake()
                for size in sizes:
                    self._ask(watch, size)
                self._wait_for(lambda: sizes[0] in watch.reading.sizes, patience)
            finally:
                watch.waiting -= 1
            return watch.reading.sizes

    def _wait_for(self, answered: Callable[[], bool], patience: float) -> None:
        """At most `patience` seconds, of those in which somebody could have answered."""
        until = self.awake_seconds() + patience
        while (left := until - self.awake_seconds()) > 0:
            if self._changed.wait_for(answered, left):
                return

    def _loop(self) -> None:
        while not self._stopped:
            try:
                for fd, _ in self._awaken():
                    if fd == self._calls.fileno():
                        continue  # What it says came along.
                    if fd == self._wake_read:
                        self._drain()
                    elif fd in self._end_calls:
                        self._process_ended(fd)
                    else:
                        self._hear(fd)
                self._tell()
                self._ask_due()
            except Exception as error:
                # Without this thread every gate would stay shut for no reason anybody sees.
                traceback.print_exception(error)
                self._halt.wait(INTERVAL)

    def _tell(self) -> None:
        """Who waits for answers, once for all that came together."""
        if self._heard_one:
            with self._changed:
                self._heard_one = False
                self._changed.notify_all()
            self.taken.set()

    def _awaken(self) -> list[tuple[int, int]]:
        """Sleep until something comes or is due; the descriptors of what came."""
        with self._changed:
            now = clock.boot_seconds()
            self._notice_stall(now)
            wait, hurried = self._until_due(now), bool(self._hurried)
            if self._awaited and not hurried:
                grid = _TAKEN.of(len(self._watches))
                wait = min(wait, grid - now % grid)
            self._expected = now + wait
        if hurried:
            ready = self._epoll.poll(wait) + self._calls.poll(0)
        else:
            # Whatever answers come meanwhile, they are taken all together.
            ready = self._calls.poll(wait) + self._epoll.poll(0)
        with self._changed:
            now = clock.boot_seconds()
            self._notice_stall(now)
            self._expected = now
        return ready

    def _notice_stall(self, now: float) -> None:
        """Whoever reads may be on the processor again before this object's thread is."""
        late = now - self._expected
        if late < _STALL:
            return
        self._expected = now
        self._stalled += late
        for watch in self._watches.values():
            watch.late += late
            watch.reading = watch.reading.excused(late)

    def _process_ended(self, pidfd: int) -> None:
        with self._changed:
            ended = self._end_calls.pop(pidfd, None)
            if ended is not None:
                self._calls.unregister(pidfd)
        if ended is not None:
            ended()

    def _until_due(self, now: float) -> float:
        while self._heap:
            at, _, watch = self._heap[0]
            if not watch.gone and at == watch.scheduled == _next(watch):
                return max(0.0, min(at - now, LOOK_IDLE))
            # What it was to wait for has happened, or something else comes first.
            heapq.heappop(self._heap)
            if not watch.gone and at == watch.scheduled:
                watch.scheduled = math.inf
                self._schedule(watch)
        return LOOK_IDLE

    def _schedule(self, watch: _Watch) -> None:
        at = _next(watch)
        if at < watch.scheduled:
            watch.scheduled = at
            heapq.heappush(self._heap, (at, next(self._pushed), watch))

    def _ask_soon(self, watch: _Watch, at: float) -> None:
        watch.due = min(watch.due, at)
        self._schedule(watch)

    def _ask_due(self) -> None:
        now = clock.boot_seconds()
        with self._changed:
            while self._heap and self._heap[0][0] <= now:
                at, _, watch = heapq.heappop(self._heap)
                if watch.gone or at != watch.scheduled:
                    continue
                watch.scheduled = math.inf
                asks = min(watch.due, watch.late) <= now
                if watch.look <= now or (asks and watch.in_line):
                    self._look(watch, now)
                if asks:
                    self._ask(watch, None)
                    watch.asked = now
                    self._ask_after(watch, now, self._pause(watch, now))
                    self._awaited.add(watch.sock.fileno())
                    watch.late = now + max(watch.reading.behaviour.late, _slack(watch, now))
                self._schedule(watch)

    def _look(self, watch: _Watch, now: float) -> None:
        """At the counters: whatever comes out is a sign of life, traffic without an answer a
        reason to ask at once.
        """
        tun, outer = watch.counters.read(watch.place.link, _OUTER)
        passage = watch.reading.passage.after(tun, outer, asked=watch.packets, now=now)
        watch.packets = 0
        reading = watch.reading
        reading.passage = passage
        watch.look = self._together(now, self._until_look(watch, now))
        if _is_unreturned(reading, now) and reading.unanswered < _BURST:
            watch.due = min(watch.due, _last_asked(reading) + _BURST_BUSY)
        if reading.looks_dead(now):
            watch.alarm()

    def _until_look(self, watch: _Watch, now: float) -> float:
        """The questions to hops further inside are traffic to the ones outside, so only the
        innermost one knows whether somebody uses the chain.
        """
        innermost = watch.innermost or watch
        if innermost.reading.passage.is_busy(now):
            for outer in watch.outer:
                # At rest it is spared for seconds, in which one that is silent would not be seen.
                outer.look = min(outer.look, now)
                self._ask_soon(outer, now + outer.place.interval)
            return LOOK_BUSY if watch.reading.passage.is_busy(now) else LOOK_IDLE
        if watch.innermost or not watch.in_line:
            return _SELDOM.of(len(self._watches)) if watch.innermost else LOOK_IDLE
        return max(LOOK_IDLE, self._idle(watch))  # Together with a question.

    def _interval(self, watch: _Watch, now: float) -> float:
        """Seconds until the next question while all is well."""
        innermost = watch.innermost or watch
        if not watch.in_line or innermost.reading.passage.is_busy(now):
            return watch.place.interval
        if watch.innermost:
            return max(watch.place.interval, _UNLESS_SPARED)
        return max(watch.place.interval, self._idle(watch))

    def _idle(self, watch: _Watch) -> float:
        """The same for the innermost hop of a chain that nobody uses."""
        slow = max(0.0, watch.reading.behaviour.late - _USUALLY_LATE)
        return max(_IDLE_INTERVAL, _IDLE.of(len(self._watches)) - slow)

    def _ask_after(self, watch: _Watch, now: float, pause: float) -> None:
        """In long pauses answers are taken together with those of others."""
        fd = watch.sock.fileno()
        if pause < _IDLE_INTERVAL:
            self._hurried.add(fd)
        elif fd in self._hurried:
            self._hurried.discard(fd)
            # After a sweep not all of them are to be asked in the same moment from now on.
            pause = self._dice.uniform(_IDLE_INTERVAL, pause)
        watch.due = self._together(now, pause)

    def _together(self, now: float, pause: float) -> float:
        """When a pause from `now` on ends. Long ones end a little sooner, for many hops at the
        same moment, so that this thread wakes up once for all of them.
        """
        return now + pause if pause < _IDLE_INTERVAL else self._on_grid(now + pause)

    def _on_grid(self, at: float) -> float:
        grid = _GRID.of(len(self._watches))
        return math.floor(at / grid) * grid

    def _pause(self, watch: _Watch, now: float) -> float:
        """Ask fast while somebody waits, and while an answer is overdue: is it dead?"""
        reading = watch.reading
        # The one that was just asked is not overdue.
        overdue = reading.overdue(now) if reading.last_heard and reading.unanswered > 1 else 0
        if overdue:
            watch.look = min(watch.look, now + LOOK_BUSY)
            for outer in watch.outer:
                if not outer.reading.silent_since:
                    self._ask_soon(outer, now)
        silence = now - reading.silent_since
        if overdue and is_dead(
            reading.behaviour,
            silence=silence,
            overdue=overdue,
            threshold=watch.place.threshold,
        ):
            watch.alarm()
            return watch.place.interval
        # Who has answered is not asked fast until the last of a thousand others has, too.
        if overdue or (watch.waiting and reading.answered < watch.awaited_from):
            return max(BURST_INTERVAL, _slack(watch, now))
        return self._interval(watch, now)

    def _ask(self, watch: _Watch, size: int | None) -> None:
        """Send what has worked, or every question while nothing has.

        With a size: an echo of as many bytes, which is not counted.
        """
        questions = watch.addressed
        if watch.works is not None and (size or watch.reading.unanswered < 3):
            questions = [questions[watch.works]]
        now = clock.boot_seconds()
        # No stall seen from here on began before the question.
        self._expected = max(self._expected, now)
        for number, address, ttl in questions:
            watch.sequence = (watch.sequence + 1) % (1 << 16)
            echo = render_echo(watch.identifier, watch.sequence, size or 28)
            try:
                if watch.ttl != ttl:
                    watch.sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                    watch.ttl = ttl
                watch.sock.sendto(echo, address)
                watch.packets += 1
            except OSError:
                pass  # A full queue or a link that is down is silence, and counted as such.
            watch.pending[watch.sequence] = _Asked(now, number, size or 0, self._stalled)
        while now - watch.pending[oldest := next(iter(watch.pending))].at > _ANSWERED_WITHIN:
            del watch.pending[oldest]
        if size:
            return
        watch.tally.asked(now)
        reading = watch.reading
        reading.sent += 1
        reading.unanswered += 1
        reading.silent_since = reading.silent_since or now
        reading.questions = (*reading.questions[-_REMEMBERED:], now)

    def _hear(self, fd: int) -> None:
        with self._changed:
            watch = self._by_fd.get(fd)
            if watch is None:
                return
            # Whoever floods is heard on with the next turn, after all others. Where one answer is
            # due, a second look for more would be half of the work.
            for _ in range(_AT_ONCE if len(watch.pending) > 1 else 1):
                try:
                    packet, about, _, _ = watch.sock.recvmsg(_LONGEST_HEADERS, _ROOM_FOR_STAMP)
                except OSError:
                    return
                answer = parse_answer(packet)
                if answer and answer.identifier == watch.identifier:
                    self._heard(watch, answer.sequence, _age(about))

    def _heard(self, watch: _Watch, sequence: int, age: float) -> None:
        """`age`: seconds since the answer came."""
        if sequence not in watch.pending:
            return
        asked, reading = watch.pending[sequence], watch.reading
        now = clock.boot_seconds()
        took = now - asked.at
        rtt = max(_SHORTEST, min(took - age, took - (self._stalled - asked.stalled)))
        self._awaited.discard(watch.sock.fileno())
        if not watch.begun:
            watch.begun = now
            watch.tally.excuse(reading.unanswered)
        waited = asked.at <= watch.begun
        lost = {
            other.at
            for other in watch.pending.values()
            if not other.size and reading.answered < other.at < asked.at
        }
        # One answer to a round of questions is enough; the others would count twice.
        watch.pending = {
            number: other for number, other in watch.pending.items() if other.at != asked.at
        }
        watch.works, watch.late = asked.number, math.inf
        if not asked.size and not waited:
            watch.tally.heard(now)
        if reading.is_away(now):
            reading.back_since = now
        reading.heard += not asked.size
        reading.last_heard = now
        reading.answered = max(reading.answered, asked.at)
        reading.silent_since = 0.0
        reading.unanswered = 0
        reading.questions = ()
        reading.behaviour = (
            reading.behaviour.at_most(rtt) if waited else reading.behaviour.after(rtt, len(lost))
        )
        if asked.size:
            reading.sizes |= {asked.size}
        if watch.slack and reading.answered >= watch.awaited_from:
            self._ask_after(watch, now, self._interval(watch, now))
            self._schedule(watch)
        for outer in watch.outer:
            self._spare(outer, now)
        self._heard_one = True

    def _spare(self, outer: _Watch, now: float) -> None:
        """It carried a question and its answer, so it need not be asked itself."""
        if outer.reading.silent_since or not outer.reading.last_heard:
            return
        outer.through = now
        # What somebody waits for, or is due already, is asked all the same.
        wanted = outer.waiting or outer.due <= now
        if not wanted and self._interval(outer, now) >= _IDLE_INTERVAL:
            many = len(self._watches)
            unless = now + _UNLESS_SPARED + _GRID.of(many)
            seldom = outer.asked + _SELDOM.of(many)
            outer.due = max(outer.due, self._on_grid(min(unless, seldom)))
            self._hurried.discard(outer.sock.fileno())

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    def _drain(self) -> None:
        while True:
            try:
                if not os.read(self._wake_read, 4096):
                    return
            except BlockingIOError:
                return


def _age(about: Sequence[tuple[int, int, bytes]]) -> float:
    """Seconds since a packet came, by what the kernel says about it."""
    for level, kind, stamp in about:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = map(int, _TIMESPEC.unpack(stamp))
            return max(0.0, clock.wall_seconds() - seconds - nanoseconds / 1e9)
    return 0.0


def _slack(watch: _Watch, now: float) -> float:
    """Who has not answered twice is asked as fast as any other."""
    return watch.slack if now - watch.awaited_from < 2 * watch.slack else 0.0


def _next(watch: _Watch) -> float:
    """When something is to be done about it."""
    return min(watch.due, watch.late, watch.look)


def _is_unreturned(reading: Reading, now: float) -> bool:
    """Traffic went out for longer than an answer usually takes, and nothing came back."""
    silence = reading.passage.unreturned_for(now)
    return silence > max(reading.behaviour.mean, LOOK_BUSY)


def _last_asked(reading: Reading) -> float:
    return reading.questions[-1] if reading.questions else 0.0


def _open(place: Place) -> tuple[socket.socket, LinkCounters]:
    """On the netlink thread, inside the hop's namespace; a socket keeps where it was opened."""
    sock = socket.socket(
        socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 1
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, place.link.encode())
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
    sock.bind((str(place.address), 0))
    return descriptors.keep_socket(sock), LinkCounters()
