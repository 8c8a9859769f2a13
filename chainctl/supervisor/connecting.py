"""The part of a chain's worker that gets OpenVPN tunnels connected.

An OpenVPN client waits until it is told to go on, and does not know its own address before its
server has said it. What the server says is looked at first; then it is a fact like others, and
the chain is worked out again with it. Until then the tunnel carries nothing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from ipaddress import IPv4Address, IPv4Network

from chainctl.errors import ChainctlError, ChangeServer, UnlockSecret
from chainctl.host import clock
from chainctl.model.chain import Chain, Engine, Hop, Tunnel
from chainctl.model.event import Event
from chainctl.model.fault import Fault, Said
from chainctl.model.openvpn import OpenVpnConfig
from chainctl.model.parts import TCP
from chainctl.model.pushed import Pushed, objection
from chainctl.runtime.openvpn import OpenVpnStatus
from chainctl.store.journal import Journal
from chainctl.supervisor.ended import Line
from chainctl.supervisor.gather import Gathered, remember_pushed
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.sniffer import Reading, Sniffer

_LOOK_EVERY = 0.02
"""Seconds between two looks at a client that connects."""
_REFUSED_PAUSE = 0.5
"""The same of one that is refused."""
_PAUSE = 5.0
"""Seconds before a client that failed may try the same again."""
LOGIN_PAUSE = 300.0
"""The same after a refused login, which providers count."""
_GRACE = 3.0
"""Seconds for a tunnel to come back that lost its connection."""
_RECONNECTS = 5.0
"""The same over TCP when its way has just changed: some ten round trips through all of it."""
SLICE = 0.5
"""Seconds for which a tunnel is asked before one looks whether it is still connected."""
_DOUBTFUL = 3.0
"""Seconds without an answer after which a connection that was there before is made anew."""
_SESSION = 180.0
"""Seconds from its handshake after which WireGuard takes and sends nothing any more
(REJECT_AFTER_TIME, section 6.1 of the paper). Its next attempts are 5 s apart, and each hop's can
only succeed after those of the hops outside it.
"""
_SHAKEN = 10.0
"""Seconds for which a guard is not asked for another handshake: others are tried meanwhile."""
_STALE = 20.0
"""Seconds of silence after which a client that thinks it is connected starts over. A server that
was started anew does not know it, and over UDP says nothing."""


class AddressIsNew(Exception):
    """A tunnel's address is not the one the chain was worked out with."""


class Connecting(ABC):
    """What is only annotated or abstract belongs to the worker."""

    name: str
    _machine: Machine
    _journal: Journal
    _sniffer: Sniffer
    _gathered: Gathered | None
    _login_refused = False
    """The newest candidate failed for that."""
    _connected: dict[Line, float]
    """Since when each client is connected, or was when it ended; seconds since 1970."""
    _shaken: dict[str, float]
    """Hop -> boot time at which its handshake was begun anew after an outage."""
    _moved: dict[str, float]
    """Hop -> boot time at which what goes through it came to go another way."""

    @property
    @abstractmethod
    def _known(self) -> Gathered: ...

    @abstractmethod
    def _hold_open(self) -> None: ...

    @abstractmethod
    def _reading(self, hop: Hop) -> Reading: ...

    def _connect(self, chain: Chain, hop: Hop, tunnel: Tunnel, *, patience: float) -> bool:
        """Have the tunnel connected; whether its address is the one the chain knows.

        Raises UnlockSecret C412 when the login is refused, ChangeServer for everything else
        that keeps it from connecting.
        """
        begun, started = self._sniffer.awake_seconds(), clock.wall_seconds()
        while True:
            status = self._machine.go_on(chain, hop, tunnel)
            if status is not None and status.state.address is not None:
                return self._take(chain, hop, tunnel, status)
            said = status.said if status else None
            if status is None or not _is_of(status, int(started), clock.wall_seconds()):
                said = None  # Of an attempt before.
            if said and said.fault is not Fault.REFUSED:
                raise failure(hop, tunnel, said)
            waited = self._sniffer.awake_seconds() - begun
            if waited > patience:
                raise failure(hop, tunnel, said) if said else _silent(hop, tunnel, waited)
            self._hold_open()
            # Who refuses may only not know yet that the one before is gone.
            time.sleep(_REFUSED_PAUSE if said else _LOOK_EVERY)

    def _doubt(self, chain: Chain, hop: Hop, asked: float) -> None:
        """Nothing was heard since `asked`, seconds since boot, of a client that is connected."""
        waited = clock.boot_seconds() - asked
        if hop.tunnel.engine is not Engine.OPENVPN or waited < _DOUBTFUL:
            return
        status = self._machine.openvpn_status(chain, hop, hop.tunnel)
        begun = clock.wall_seconds() - waited
        if status is not None and status.handshake is not None and status.handshake < begun:
            self._machine.start_over(chain, hop, hop.tunnel)

    def _take(self, chain: Chain, hop: Hop, tunnel: Tunnel, status: OpenVpnStatus) -> bool:
        """Make a fact of what the server said, if it can be one. Raises ChangeServer C419."""
        address = status.state.address
        assert address is not None, "only asked when it is there"
        self._connected[tunnel.endpoint, chain.source_port(hop, tunnel.slot)] = status.state.since
        elsewhere = self._elsewhere(chain)
        wrong = objection(address, elsewhere)
        if wrong is not None:
            raise ChangeServer(
                "C419",
                f"{tunnel.server} gives this end an address it cannot have: {wrong}",
                hint="choose another server",
                where=f"hop {hop.name}",
            )
        key = (hop.name, tunnel.slot)
        known = self._known.facts.pushed.get(key)
        push = status.account.push
        resolver = push.resolver if push else None
        if resolver is not None and objection(resolver, elsewhere):
            resolver = None
        if push is None and known and (known.server, known.address) == (tunnel.server, address):
            resolver = known.resolver  # Its log has forgotten.
        said = Pushed(tunnel.server, address, resolver)
        if said != known:
            self._gathered = self._known.with_pushed(hop.name, tunnel.slot, said)
            remember_pushed(self.name, self._journal, self._gathered.facts.pushed)
            ignored = push.ignored if push else ()
            self._journal.append(
                Event(
                    "address_given",
                    self.name,
                    f"{tunnel.server} gives this end {address}",
                    hop=hop.name,
                    facts={"address": str(address), "not_done": list(ignored)},
                )
            )
        return address == tunnel.address

    def _elsewhere(self, chain: Chain) -> list[tuple[IPv4Network, str]]:
        """What a pushed address must not be."""
        network = self._known.facts.network
        return [
            (chain.wires, f"the addresses chainctl uses inside ({chain.wires})"),
            *((lan.address.network, f"the LAN {lan.address.network}") for lan in chain.lans),
            *(
                (IPv4Network(tunnel.endpoint), f"{tunnel.server}'s own address")
                for hop in chain.hops
                for tunnel in hop.tunnels
            ),
            *(
                (IPv4Network(held.interface.ip), f"this machine's own address on {held.link}")
                for held in network.addresses
                if isinstance(held.interface.ip, IPv4Address)
            ),
        ]

    def _forget_pushed(self, hop: Hop, tunnel: Tunnel) -> None:
        self._gathered = self._known.with_pushed(hop.name, tunnel.slot, None)
        remember_pushed(self.name, self._journal, self._gathered.facts.pushed)

    def _tend(self, chain: Chain) -> Hop | None:
        """Let clients go on that lost their connection and wait; the outermost hop with a tunnel
        whose address is no longer the one the chain knows.
        """
        changed, way_is_there = None, True
        for hop in chain.hops:
            for tunnel in hop.tunnels:
                if tunnel.engine is not Engine.OPENVPN:
                    continue
                status = self._machine.openvpn_status(chain, hop, tunnel)
                if status is None:
                    continue
                if status.handshake is not None:
                    line = tunnel.endpoint, chain.source_port(hop, tunnel.slot)
                    self._connected[line] = status.handshake
                wants = (status.waits or status.asks) and way_is_there
                if wants and (
                    _may_go_on(status, clock.wall_seconds()) or self._was_cut(chain, hop, status)
                ):
                    self._machine.go_on(chain, hop, tunnel)
                way_is_there &= tunnel != hop.tunnel or status.handshake is not None
                if status.state.address not in (None, tunnel.address):
                    changed = changed or hop
                if tunnel == hop.tunnel and self._is_stale(chain, hop, status):
                    self._machine.start_over(chain, hop, tunnel)
        return changed

    def _is_stale(self, chain: Chain, hop: Hop, status: OpenVpnStatus) -> bool:
        """It thinks it is connected, and the hop alone is silent."""
        now = clock.boot_seconds()
        if not status.handshake or 0 <= clock.wall_seconds() - status.handshake < _STALE:
            return False
        outer = [self._reading(each) for each in chain.hops[: hop.number - 1]]
        heard = self._reading(hop).last_heard
        return (
            bool(heard)
            and now - heard > _STALE
            and all(now - each.last_heard < _GRACE for each in outer)
        )

    def _comes_back(self, chain: Chain, hop: Hop) -> bool:
        """A hop that is silent because it connects anew by itself, within a moment."""
        tunnel = hop.tunnel
        if tunnel.engine is not Engine.OPENVPN:
            return self._session_has_ended(chain, hop)
        status = self._machine.openvpn_status(chain, hop, tunnel)
        if status is None:
            return False
        moved = tunnel.protocol == TCP and self._has_moved(chain, hop)
        excused = status.state.why == "connection-reset" or self._was_cut(chain, hop, status)
        if status.said is not None and not excused:
            return False
        if status.waits or status.asks:
            self._machine.go_on(chain, hop, tunnel)
        silence = clock.boot_seconds() - self._reading(hop).last_heard
        return moved or (not status.handshake and silence < _GRACE)

    def _session_has_ended(self, chain: Chain, hop: Hop) -> bool:
        """With WireGuard, because nothing came through what is outside it for so long. When that
        is back, its server gets a moment to answer another handshake; the guard's gets it before
        any other one is tried.
        """
        now = clock.boot_seconds()
        shaken = self._shaken.get(hop.name, 0.0)
        if now - shaken < _GRACE:
            return True
        back = [self._reading(outer).back_since for outer in chain.hops[: hop.number - 1]]
        if shaken >= max(back, default=now - _SHAKEN):
            return False
        status = self._machine.tunnel_status(chain, hop)
        handshake = status.handshake if status else None
        if handshake is None or clock.wall_seconds() - handshake < _SESSION:
            return False
        self._shaken[hop.name] = now
        self._machine.shake_anew(chain, hop, hop.tunnel)
        return True

    def _was_cut(self, chain: Chain, hop: Hop, status: OpenVpnStatus) -> bool:
        """With another way to it, a server refuses what is left of the connection before."""
        said = status.said
        refused = said is not None and said.fault is Fault.REFUSED
        return refused and self._has_moved(chain, hop)

    def _has_moved(self, chain: Chain, hop: Hop) -> bool:
        """A hop outside it has had its server, or its client, for a moment only."""
        begun = clock.boot_seconds() - _RECONNECTS
        return any(
            self._moved.get(outer.name, begun) > begun for outer in chain.hops[: hop.number - 1]
        )


def _silent(hop: Hop, tunnel: Tunnel, seconds: float) -> ChainctlError:
    config = tunnel.config
    hint = "chainctl doctor, or choose another server"
    if isinstance(config, OpenVpnConfig) and config.profile.control:
        hint = "with a wrong key for tls-crypt or tls-auth a server is silent too"
    return ChangeServer(
        Fault.DEAD.code,
        f"{tunnel.server} does not answer: not connected after {seconds:.1f} s",
        hint=hint,
        where=f"hop {hop.name}",
    )


def failure(hop: Hop, tunnel: Tunnel, said: Said) -> ChainctlError:
    """What a client says is wrong, as an error."""
    text = f"{tunnel.server} {said.text}"
    where = f"hop {hop.name}"
    if said.fault is Fault.AUTH:
        return UnlockSecret(
            said.fault.code,
            f"{text}; another server of the same account would do the same",
            hint="check username and password, and whether the account is paid",
            where=where,
        )
    hint = "choose another server, or get its profile again"
    if said.fault is Fault.CLOCK:
        hint = "set this machine's clock"
    return ChangeServer(said.fault.code, text, hint=hint, where=where)


def _is_of(status: OpenVpnStatus, started: int, now: float) -> bool:
    """What it says is wrong is of an attempt since `started`. A time that is yet to come was
    noted before the clock was set back.
    """
    return started <= status.account.said_at <= now + 1


def _may_go_on(status: OpenVpnStatus, now: float) -> bool:
    said = status.said
    if said is None:
        return True
    pause = LOGIN_PAUSE if said.fault.concerns_account else _PAUSE
    # With the clock set back since, nobody knows how long ago it was.
    return not 0 <= now - status.account.said_at < pause
