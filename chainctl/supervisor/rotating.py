"""The half of a chain's worker that replaces servers: failed, due, unloved, or by hand.

Make before break: the candidate comes up in the hop's other tunnel slot, has to answer a
two-way probe, and then one nft transaction sends traffic its way. Whom to try and whether to
try at all is decided in `rotation`; which hop is at fault, in `verdict`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

from chainctl.errors import (
    ChainctlError,
    ChangeServer,
    MendFile,
    RefusedByPolicy,
    UnlockSecret,
)
from chainctl.host import clock
from chainctl.model.chain import Chain, Engine, Hop, Tunnel
from chainctl.model.event import Event
from chainctl.model.fault import Fault
from chainctl.model.parts import TCP, Up
from chainctl.model.selection import HopSelection
from chainctl.net.layout import layout
from chainctl.runtime.openvpn import OpenVpnStatus
from chainctl.spec.model import HopSpec
from chainctl.supervisor.choose import Candidate
from chainctl.supervisor.connecting import LOGIN_PAUSE, SLICE, Connecting
from chainctl.supervisor.ended import is_free, line_of
from chainctl.supervisor.execute import Executor, Progress
from chainctl.supervisor.gather import Gathered
from chainctl.supervisor.path_mtu import judge_sizes, sizes_to_try
from chainctl.supervisor.plan import Remove, Step, plan
from chainctl.supervisor.resolve import resolve
from chainctl.supervisor.rotation import Options, Rotations
from chainctl.supervisor.sniffer import Place, Reading, Sniffer
from chainctl.supervisor.verdict import (
    Evidence,
    Verdict,
    judge_answering,
    judge_silent,
    outermost_dead,
)

DRAIN = 2.0
"""Seconds a replaced tunnel still takes what its server sends back."""

_CANDIDATE_PATIENCE = 1.5
"""Seconds a server has to answer that comes up beside a dead one: there may be a better."""
_PLANNED_PATIENCE = 3.0
"""The same beside one that works. No longer: as long, no other hop's failure is acted on."""
_CONNECT_PATIENCE = 4.0
"""The same for OpenVPN to connect: some eight round trips."""
_WARM = 1.0
"""Seconds within which a standby must have been heard to take over without being asked."""
_STANDBY_PATIENCE = 0.2
"""Seconds in which a standby has to answer that is to take over because of a doubt."""
_SETTLED = 60.0
"""Seconds in which a doubt does not lead back to the server that was left: no to and fro."""
_LOSSY_FOR = 60.0
"""Seconds of more loss than allowed before a server is replaced for it."""
_SUCCESSORS = 2
"""Servers tried for a client that ended, before it is started anew in its place."""
_UPLINK_PAUSE = 1.0
"""Seconds between two looks at an uplink that is down."""
_SIZES_PATIENCE = 0.5
"""Seconds for an answer to a packet of each size, before all are sent again."""
_SIZES_ROUNDS = 3
"""A packet that is lost for another reason is not to make the MTU smaller."""


class Rotating(Connecting):
    """What is only annotated or abstract belongs to the worker."""

    _sniffer: Sniffer
    _executor: Executor
    _rotations: Rotations
    _retiring: dict[str, float]
    """Hop -> boot time at which its draining tunnel is taken away."""

    _uplink_fault: str
    _lossy_since: dict[str, float]
    """Hop -> boot time since which it has lost more than allowed."""
    _unproved: str
    """The outermost hop that did not answer when the chain was last to be proved."""

    _doubted: dict[str, tuple[float, str, float]]
    """Hop -> the newest silence because of which its standby was asked, the server that was
    left in doubt the last time, and when. Boot time.
    """

    @property
    @abstractmethod
    def _chain(self) -> Chain: ...

    @abstractmethod
    def _settle(self, gathered: Gathered, chain: Chain) -> Gathered: ...

    @abstractmethod
    def _watch(self, chain: Chain) -> None: ...

    @abstractmethod
    def _alarm(self) -> None: ...

    @abstractmethod
    def _plan_ahead(self, chain: Chain) -> None: ...

    @abstractmethod
    def _show(self, chain: Chain) -> None: ...

    @abstractmethod
    def _carry_out(self, gathered: Gathered) -> None: ...

    def _rotate_by_hand(self, name: str, to: str, progress: Progress) -> None:
        chain, hop = self._hop_by_name(name)
        known = self._known
        options = self._rotations.options(
            known.spec, known.facts.names, hop, chain, to=to, any_port=True
        )
        if not options.order:
            raise ChangeServer(
                "C422",
                options.why or "no other server is left",
                hint="chainctl explain",
                where=f"hop {name}",
            )
        choice = options.order
        if not self._replace(chain, hop, choice[0], progress=progress):
            raise ChangeServer(
                "C423",
                f"{choice[0].server} does not answer; {hop.tunnel.server} stays",
                hint="choose another with --to",
                where=f"hop {name}",
            )
        self._rotations.carries(self._hop(name), self._wish(hop), by_hand=True)

    def _hop_by_name(self, name: str) -> tuple[Chain, Hop]:
        if self._gathered is None:
            raise RefusedByPolicy(
                "C420", f"the chain {self.name} is not up and proved", hint="chainctl status"
            )
        chain = self._chain
        hop = next((hop for hop in chain.hops if hop.name == name), None)
        if hop is None:
            known = ", ".join(hop.name for hop in chain.hops)
            raise MendFile("C421", f"there is no hop {name!r}: this chain has {known}")
        return chain, hop

    def _fail_over(self, chain: Chain, hop: Hop) -> None:
        """Replace the server of a dead hop by the first candidate that answers."""
        if hop.number == 1 and self._uplink_is_at_fault(chain):
            return
        if not self._silent_since(hop) or self._comes_back(chain, hop):
            return
        declared = clock.boot_seconds()
        verdict = self._silence(chain, hop)
        self._say("hop_dead", verdict.text, hop=hop.name, code=verdict.code)
        if self._standby_takes_over(chain, hop, verdict):
            return
        if verdict.fault.concerns_account:
            self._hold_login(hop)
            return
        self._try_others(chain, hop, declared, verdict.fault)

    def _try_others(self, chain: Chain, hop: Hop, declared: float, fault: Fault) -> None:
        """For a hop that was found to be of no use at `declared`, seconds since boot."""
        options = self._options(chain, hop, any_port=True)
        silent = [hop.tunnel.endpoint]
        for candidate in options.order:
            if not self._rotations.may_change(self._known.spec, hop):
                self._hold(hop, "too many changes of server within an hour")
                return
            if self._replace(chain, hop, candidate, dead_since=declared, progress=_silent):
                # Only now: while nothing answers at all, no server is to blame. Nor is one for
                # a port that is blocked.
                for address in silent:
                    if address != candidate.address:
                        self._rotations.blame(hop, address, fault)
                return
            if self._login_refused:
                self._hold_login(hop)
                return
            if self._was_heard(hop, declared):
                self._say("hop_back", f"{hop.tunnel.server} answers again", hop=hop.name)
                return
            if hop.number == 1:
                silent.append(candidate.address)
            chain, hop = self._chain, self._hop(hop.name)
        self._hold(hop, options.why or "no server of its pool answers")

    def _begin_elsewhere(self, chain: Chain, hop: Hop) -> bool:
        """Have the standby of a hop whose client ended take over; without one, begin anew in the
        other slot, with the same server or with the next. Whether that carries traffic now.
        """
        begun, server = time.monotonic(), hop.tunnel.server
        if self._wish(hop).sessions == 1:
            other = hop.active.other
            self._begin_inside_anew(hop)
            chosen = HopSelection(other, {other: server})
            self._carry_out(self._known.with_selection(hop.name, chosen))
            return True
        tunnel = self._raise_another(chain, hop) if hop.candidate is None else None
        tunnel = tunnel or self._warm_standby(hop)
        if tunnel is None:
            return False
        switched = self._adjusted(self._chain, hop, HopSelection.switched)
        if tunnel.server == server:
            text = f"the VPN client of {server} ended; another one took its place"
            self._say("repaired", text, hop=hop.name, code="N501")
            self._excuse_inside(hop)
        else:
            self._replaced(hop, tunnel, planned=False, progress=_silent, begun=begun)
        self._begin_inside_anew(hop)
        self._cut_off(switched, hop)
        self._retire(switched, hop)
        return True

    def _raise_another(self, chain: Chain, hop: Hop) -> Tunnel | None:
        """In the hop's other slot, the same server first."""
        line = line_of(chain, hop, hop.active.other)
        again = [Candidate(hop.tunnel.server, hop.tunnel.endpoint)]
        if not is_free(line, self._connected, clock.wall_seconds()):
            again = []
        may_change = self._rotations.may_change(self._known.spec, hop)
        others = self._options(chain, hop).order if may_change else ()
        for candidate in (*again, *others)[:_SUCCESSORS]:
            tunnel = self._raise(self._chain, self._hop(hop.name), candidate, _CANDIDATE_PATIENCE)
            if tunnel is not None:
                return tunnel
            self._drop_candidate(hop)
            if self._login_refused:
                return None
        return None

    def _standby_takes_over(self, chain: Chain, hop: Hop, verdict: Verdict) -> bool:
        tunnel = self._warm_standby(hop)
        if tunnel is None:
            return False
        begun = time.monotonic()
        switched = self._adjusted(chain, hop, HopSelection.switched)
        self._replaced(hop, tunnel, planned=False, progress=_silent, begun=begun)
        self._begin_inside_anew(hop)
        self._cut_off(switched, hop)
        self._rotations.blame(hop, hop.tunnel.endpoint, verdict.fault)
        self._retire(switched, hop)
        return True

    def _change_over(self, chain: Chain) -> bool:
        """Use a standby as soon as there is doubt, long before anybody could be called dead.

        The standby has to answer a question that is asked now: it runs through the same hops
        outside, so that what it proves is that they and the uplink are well. Nobody is blamed.
        The server that was left stands by in turn, and is blamed if it stays silent as that. An
        exit's goes at once, since connections that began over it cannot go on elsewhere.
        """
        now = clock.boot_seconds()
        for hop in chain.hops:
            reading = self._sniffer.reading(self._key(hop))
            if not reading.looks_dead(now):
                continue
            tunnel = self._standby(hop)
            doubt = reading.passage.unreturned_since
            asked, left, left_at = self._doubted.get(hop.name, (0.0, "", 0.0))
            if tunnel is None or doubt <= asked:
                return False
            self._doubted[hop.name] = (doubt, left, left_at)
            if tunnel.server == left and now - left_at < _SETTLED:
                return False
            if not self._rotations.may_change(self._known.spec, hop, share=2):
                return False
            key, begun = self._key(hop, tunnel), time.monotonic()
            if self._sniffer.prove(key, patience=_STANDBY_PATIENCE).answered < now:
                return False
            if not self._sniffer.reading(self._key(hop)).looks_dead(clock.boot_seconds()):
                return False
            switched = self._adjusted(chain, hop, HopSelection.switched)
            self._doubted[hop.name] = (doubt, hop.tunnel.server, now)
            self._replaced(hop, tunnel, planned=False, progress=_silent, begun=begun)
            self._begin_inside_anew(hop)
            if hop.number == len(chain.hops):
                self._cut_off(switched, hop)
                self._retire(switched, hop)
            else:
                self._watch(self._chain)
            return True
        return False

    def _standby(self, hop: Hop) -> Tunnel | None:
        return hop.candidate if hop.name not in self._retiring else None

    def _warm_standby(self, hop: Hop) -> Tunnel | None:
        """One that was heard a moment ago."""
        tunnel = self._standby(hop)
        if tunnel is None:
            return None
        reading = self._sniffer.reading(self._key(hop, tunnel))
        return tunnel if clock.boot_seconds() - reading.last_heard <= _WARM else None

    def _lost_standby(self, chain: Chain) -> Hop | None:
        """A hop whose standby is silent although the hop itself answers."""
        now = clock.boot_seconds()
        for hop in chain.hops:
            tunnel = self._standby(hop)
            if tunnel is None:
                continue
            readings = [self._sniffer.reading(self._key(hop, each)) for each in (None, tunnel)]
            if outermost_dead(readings, now, threshold=self._known.spec.health.phi) == 1:
                return hop
        return None

    def _uplink_is_at_fault(self, chain: Chain) -> bool:
        """Ask before a guard is blamed: whoever can cut the line must not choose the next one."""
        fault = self._machine.find_uplink_fault(chain)
        if fault and fault != self._uplink_fault:
            self._say("uplink_down", fault, code="C425")
        self._uplink_fault = fault
        if fault:
            self._rotations.held_until = clock.boot_seconds() + _UPLINK_PAUSE
        return bool(fault)

    def _hold_login(self, hop: Hop) -> None:
        """Every server of the account would refuse it, and providers count."""
        self._rotations.held_until = clock.boot_seconds() + LOGIN_PAUSE
        text = f"the login was refused; next try in {LOGIN_PAUSE:.0f} s"
        self._say("rotation_held", text, hop=hop.name, code=Fault.AUTH.code)

    def _hold(self, hop: Hop, why: str) -> None:
        seconds = self._rotations.hold()
        text = f"{why}; next try in {seconds:.0f} s"
        self._say("rotation_held", text, hop=hop.name, code="C424")

    def _retire_what_is_over(self, chain: Chain) -> bool:
        """One at a time, also while the gate is shut: the server is not to be reached any more."""
        over = [hop for hop in chain.hops if self._is_over(hop)]
        if over:
            self._retire(chain, over[0])
        return bool(over)

    def _rotate_what_is_due(self, chain: Chain) -> bool:
        """At most one thing at a time, and only while every hop answers."""
        spec = self._known.spec
        lost = self._lost_standby(chain)
        if lost is not None and lost.candidate is not None:
            silent = lost.candidate
            self._say("standby_lost", f"{silent.server} stopped answering", hop=lost.name)
            self._rotations.blame(lost, silent.endpoint, Fault.DEAD)
            self._retire(chain, lost)
            return True
        for hop in chain.hops:
            if self._wish(hop).standby and hop.candidate is None and not self._held():
                return self._bring_up_standby(chain, hop)
        lossy = self._lossy_hop(chain)
        if lossy is not None and not self._held():
            verdict = judge_answering(self._evidence(chain, lossy))
            if verdict is None or verdict.fault is not Fault.LOSSY:
                return False
            self._say("hop_lossy", verdict.text, hop=lossy.name, code=verdict.code)
            if not self._planned(chain, lossy):
                self._hold(lossy, "no other server answers")
            return True
        name = self._rotations.due(spec, chain, busy=bool(self._retiring))
        if name is not None:
            return self._planned(chain, self._hop(name))
        back = self._rotations.fail_back(spec, self._known.facts.names, chain)
        if back is not None and not self._held():
            hop, candidate = back
            if not self._replace(chain, hop, candidate, progress=_silent):
                self._hold(hop, f"{candidate.server}, which it prefers, does not answer")
            return True
        return False

    def _lossy_hop(self, chain: Chain) -> Hop | None:
        """The outermost hop that has lost more than is allowed for a minute: the ones inside
        it lose what it loses.
        """
        now = clock.boot_seconds()
        for hop in chain.hops:
            if self._one_way_loss(hop) <= self._known.spec.health.loss:
                self._lossy_since.pop(hop.name, None)
            elif now - self._lossy_since.setdefault(hop.name, now) >= _LOSSY_FOR:
                self._lossy_since.clear()
                return hop
            else:
                return None
        return None

    def _one_way_loss(self, hop: Hop) -> float:
        return self._sniffer.reading(self._key(hop)).behaviour.one_way_loss

    def _planned(self, chain: Chain, hop: Hop) -> bool:
        if hop.number == 1:
            self._rotations.retire_guard(hop.tunnel.endpoint)
        options = self._options(chain, hop)
        for candidate in options.order[:3]:
            if not self._rotations.may_change(self._known.spec, hop):
                break
            if self._replace(chain, hop, candidate, progress=_silent):
                return True
            chain, hop = self._chain, self._hop(hop.name)
        self._rotations.postpone(hop)
        why = options.why or "no other server answers"
        self._say("rotation_postponed", f"{hop.tunnel.server} stays: {why}", hop=hop.name)
        return True

    def _bring_up_standby(self, chain: Chain, hop: Hop) -> bool:
        """Beside the active tunnel, and kept there: it can take over within one transaction."""
        options = self._options(chain, hop)
        if not options.order:
            self._hold(hop, f"no standby: {options.why}")
            return True
        _, left, left_at = self._doubted.get(hop.name, (0.0, "", 0.0))
        recently = clock.boot_seconds() - left_at < _SETTLED
        others = [one for one in options.order if not (recently and one.server == left)]
        candidate = (others or options.order)[0]
        tunnel = self._raise(chain, hop, candidate)
        if tunnel is None:
            self._drop_candidate(hop)
            self._rotations.blame(hop, candidate.address, Fault.DEAD)
            self._hold(hop, f"{candidate.server} does not answer as a standby")
        else:
            self._say("standby_ready", f"{tunnel.server} stands by", hop=hop.name)
            self._watch(self._chain)
        return True

    def _replace(
        self,
        chain: Chain,
        hop: Hop,
        candidate: Candidate,
        *,
        dead_since: float | None = None,
        progress: Progress,
    ) -> bool:
        """Whether the hop uses the candidate now. For a repair `dead_since` says when (boot
        time) the hop was called dead: whatever was heard of it after that is a veto.
        """
        begun, planned = time.monotonic(), dead_since is None
        if self._wish(hop).sessions == 1:
            return self._remove_first(hop, candidate, planned=planned, progress=progress)
        if hop.candidate is not None:
            # The other slot is taken, by what drains or stands by: that ends now.
            self._retire(chain, hop)
            chain, hop = self._chain, self._hop(hop.name)
        patience = _PLANNED_PATIENCE if planned else _CANDIDATE_PATIENCE
        tunnel = self._raise(chain, hop, candidate, patience)
        back = dead_since is not None and self._was_heard(hop, dead_since)
        if tunnel is None or back:
            self._drop_candidate(hop)
            if tunnel is None and not self._login_refused:
                # Nobody is to blame while the uplink may be: a guard needs a witness.
                works = planned and candidate.address == hop.tunnel.endpoint
                if not works and (planned or hop.number > 1):
                    self._rotations.blame(hop, candidate.address, Fault.DEAD)
                self._say("candidate_silent", f"{candidate.server} does not answer", hop=hop.name)
            return False
        trial = self._chain
        if hop.number == 1:
            self._remember_path(trial, self._hop(hop.name), tunnel)
        switched = self._adjusted(trial, hop, HopSelection.switched)
        self._replaced(hop, tunnel, planned=planned, progress=progress, begun=begun)
        self._begin_inside_anew(hop)
        if planned:
            exits = hop.number == len(chain.hops)
            drain = self._known.spec.rotation.drain if exits else DRAIN
            self._retiring[hop.name] = clock.boot_seconds() + drain
            self._watch(switched)
        else:
            self._cut_off(switched, hop)
            self._retire(switched, hop)
        return True

    def _remove_first(
        self, hop: Hop, candidate: Candidate, *, planned: bool, progress: Progress
    ) -> bool:
        """For an account that allows one session: the gate is shut until the new one is proved."""
        begun = time.monotonic()
        self._rotations.will_try(hop, candidate.address)
        # They wait then, and go on when what they go through is proved.
        self._begin_inside_anew(hop)
        chosen = HopSelection(hop.active, {hop.active: candidate.server})
        self._carry_out(self._known.with_selection(hop.name, chosen))
        tunnel = self._hop(hop.name).tunnel
        self._replaced(hop, tunnel, planned=planned, progress=progress, begun=begun)
        return True

    def _raise(
        self, chain: Chain, hop: Hop, candidate: Candidate, patience: float = _PLANNED_PATIENCE
    ) -> Tunnel | None:
        """Bring the candidate up beside what carries traffic; None when it does not answer."""
        self._rotations.will_try(hop, candidate.address)
        self._login_refused = False
        trial = self._adjusted(chain, hop, lambda chosen: chosen.with_candidate(candidate.server))
        beside = trial.hops[hop.number - 1]
        tunnel = beside.candidate
        assert tunnel is not None, "it was just given one"
        if tunnel.engine is Engine.OPENVPN:
            try:
                known = self._connect(trial, beside, tunnel, patience=_CONNECT_PATIENCE)
            except ChainctlError as error:
                self._login_refused = isinstance(error, UnlockSecret)
                self._say("candidate_failed", error.message, hop=hop.name, code=error.code)
                return None
            if not known:
                trial = self._adjusted(trial, beside, lambda chosen: chosen)
                beside = trial.hops[hop.number - 1]
                tunnel = beside.candidate
                assert tunnel is not None, "it is still there"
        key = self._key(beside, tunnel)
        self._sniffer.watch(key, self._place(trial, beside, tunnel), self._alarm)
        deadline = self._sniffer.awake_seconds() + patience
        while not self._sniffer.prove(key, patience=SLICE).last_heard:
            if self._sniffer.awake_seconds() >= deadline:
                return None
            self._hold_open()
        return tunnel

    def _drop_candidate(self, hop: Hop) -> None:
        self._adjusted(self._chain, hop, HopSelection.alone)
        self._watch(self._chain)

    def _replaced(
        self, hop: Hop, tunnel: Tunnel, *, planned: bool, progress: Progress, begun: float
    ) -> None:
        self._rotations.changed(hop)
        self._rotations.carries(self._hop(hop.name), self._wish(hop))
        self._plan_ahead(self._chain)
        text = f"{hop.tunnel.server} -> {tunnel.server}"
        if not planned and hop.number == len(self._chain.hops):
            text += "; the exit address changed, so open connections end"
        if not planned:
            self._excuse_inside(hop)
        self._say("server_replaced", text, hop=hop.name, code="N420" if planned else "N421")
        progress(hop.name, text, time.monotonic() - begun)

    def _excuse_inside(self, hop: Hop) -> None:
        """What the hops inside it did not answer meanwhile is not to count against them."""
        for inner in self._chain.hops[hop.number :]:
            self._sniffer.excuse(self._key(inner))

    def _begin_inside_anew(self, hop: Hop) -> None:
        """A TCP connection inside it does not survive that it comes another way, and would learn
        so only with its next retransmission, seconds later.
        """
        self._moved[hop.name] = clock.boot_seconds()
        for inner in self._chain.hops[hop.number :]:
            if inner.tunnel.protocol == TCP:
                self._machine.start_over(self._chain, inner, inner.tunnel)

    def _remember_path(self, chain: Chain, guard: Hop, tunnel: Tunnel) -> None:
        """Another guard may be reached over a path that takes less."""
        path = chain.path_to(tunnel.endpoint)
        known = self._journal.recall(self.name, "path_mtus", {})
        if path not in known:
            key = self._key(guard, tunnel)
            answered, smaller = self._try_sizes(key, tunnel, chain.tunnel_mtu(guard, tunnel))
            if answered:
                known[path] = smaller or chain.path_mtu
                self._journal.remember(self.name, "path_mtus", known)

    def _try_sizes(self, key: str, tunnel: Tunnel, largest: int) -> tuple[bool, int | None]:
        """Whether any packet came through, and the path MTU when it is smaller than thought."""
        answered: set[int] = set()
        for _ in range(_SIZES_ROUNDS):
            answered |= self._sniffer.measure(
                key, sizes_to_try(tunnel, largest), patience=_SIZES_PATIENCE
            )
            if largest in answered:
                break
        return bool(answered), judge_sizes(tunnel, largest, answered)

    def _cut_off(self, chain: Chain, hop: Hop) -> None:
        """Let what began over a dead exit begin anew: with the link the kernel forgets what it
        masqueraded there (nf_nat_masquerade.c), long before the client has ended.
        """
        if hop.number == len(chain.hops):
            link = Up(chain.namespace(hop), hop.tunnel.slot.link)
            self._execute([Remove(link)], chain)

    def _retire(self, chain: Chain, hop: Hop) -> None:
        """Take away the tunnel that no longer carries traffic. It drains until it is gone."""
        try:
            self._adjusted(chain, hop, HopSelection.alone)
        finally:
            self._retiring.pop(hop.name, None)
        self._watch(self._chain)

    def _adjusted(
        self, chain: Chain, hop: Hop, change: Callable[[HopSelection], HopSelection]
    ) -> Chain:
        """The chain with another selection for one hop, carried out beside running traffic.

        Compared with what should be there, not with what is: the next look finds the rest.
        """
        chosen = change(self._known.facts.selection[hop.name])
        paths = self._journal.recall(self.name, "path_mtus", {})
        gathered = self._known.with_selection(hop.name, chosen).with_path_mtus(paths)
        new = resolve(gathered.spec, gathered.facts)
        self._machine.configure(new)
        self._gathered = self._settle(gathered, new)
        self._show(new)
        steps = plan(layout(new), layout(chain), beside=True)
        self._machine.take_leave(steps)
        self._execute(steps, new)
        return new

    def _execute(self, steps: Sequence[Step], chain: Chain) -> None:
        self._executor.execute(
            steps, number=chain.number, chain=chain, prove=_never, open_gate=_never_open
        )

    def _options(self, chain: Chain, hop: Hop, *, any_port: bool = False) -> Options:
        known = self._known
        names = known.facts.names
        return self._rotations.options(known.spec, names, hop, chain, any_port=any_port)

    def verdict(self, chain: Chain, hop: Hop, silent: bool) -> Verdict | None:
        """What is wrong with a hop whose outer hops are fine; None: nothing. From any thread.

        `silent`: it does not answer.
        """
        return self._silence(chain, hop) if silent else judge_answering(self._evidence(chain, hop))

    def _silence(self, chain: Chain, hop: Hop, evidence: Evidence | None = None) -> Verdict:
        """Why it does not answer. Asks its client, which takes a moment."""
        evidence = evidence or self._evidence(chain, hop)
        status = self._machine.tunnel_status(chain, hop)
        if status is None:
            return judge_silent(evidence)
        age = clock.wall_seconds() - status.handshake if status.handshake else None
        evidence = replace(evidence, handshake_age=age)
        if isinstance(status, OpenVpnStatus):
            return judge_silent(replace(evidence, said=status.said))
        return judge_silent(replace(evidence, says_handshakes=True))

    def _evidence(self, chain: Chain, hop: Hop) -> Evidence:
        return Evidence(
            self._sniffer.reading(self._key(hop)),
            clock.boot_seconds(),
            outer=chain.hops[hop.number - 2].name if hop.number > 1 else "",
            uplink=self._uplink_fault if hop.number == 1 else "",
            shares_link=hop.candidate is not None,
            loss_allowed=self._known.spec.health.loss,
        )

    def _was_heard(self, hop: Hop, since: float) -> bool:
        """Something came out of its tunnel after `since` (boot time)."""
        reading = self._sniffer.reading(self._key(hop))
        return max(reading.last_heard, reading.passage.last_received) > since

    def _silent_since(self, hop: Hop) -> float:
        """Boot time of its oldest unanswered question; 0 when it was heard after the last."""
        return self._sniffer.reading(self._key(hop)).silent_since

    def _place(self, chain: Chain, hop: Hop, tunnel: Tunnel) -> Place:
        assert tunnel.address is not None, "a tunnel without an address carries nothing"
        ns = chain.namespace(hop)
        link = tunnel.slot.link
        health = self._known.spec.health
        return Place(
            ns,
            link,
            tunnel.address,
            tunnel.resolver,
            tunnel.endpoint,
            probe=health.probe,
            interval=health.interval,
            threshold=health.phi,
            device=self._machine.device(ns, link),
        )

    def _key(self, hop: Hop, tunnel: Tunnel | None = None) -> str:
        return f"{self.name}/{hop.name}/{(tunnel or hop.tunnel).slot.name}"

    def _say(self, kind: str, text: str, *, hop: str = "", code: str = "") -> None:
        self._journal.append(Event(kind, self.name, text, hop=hop, code=code))

    def _reading(self, hop: Hop) -> Reading:
        return self._sniffer.reading(self._key(hop))

    @property
    def _known(self) -> Gathered:
        assert self._gathered is not None, "only asked while a chain is up"
        return self._gathered

    def _hop(self, name: str) -> Hop:
        return next(hop for hop in self._chain.hops if hop.name == name)

    def _wish(self, hop: Hop) -> HopSpec:
        return self._known.spec.hops[hop.number - 1]

    def _is_over(self, hop: Hop) -> bool:
        at = self._retiring.get(hop.name)
        return at is not None and at <= clock.boot_seconds()

    def _held(self) -> bool:
        return clock.boot_seconds() < self._rotations.held_until


def _silent(_what: str, _text: str, _seconds: float) -> None:
    """What happens by itself has nobody to report to but the journal."""


def _never(number: int) -> None:
    raise AssertionError(f"hop {number} is proved while another one is changed")


def _never_open() -> None:
    raise AssertionError("the gate is opened while a hop is changed beside traffic")
