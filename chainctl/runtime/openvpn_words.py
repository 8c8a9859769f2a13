"""What openvpn says on its management socket, as values. Pure.

The form is that of OpenVPN's doc/management-notes.txt; the texts that tell why there is no
tunnel are those of 2.6 and 2.7 (src/openvpn: ssl.c, ssl_verify.c, push.c, socket.c, forward.c).

That a packet could not be unwrapped is one of them over TCP only. Over UDP it need not come from
the server, and one of 2.6 answers the first packet without a session, so that its next one looks
like a replay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address

from chainctl.model.fault import Fault, Said
from chainctl.model.pushed import PushReply, parse_push

_PUSH = "PUSH: Received control message: '"
_NUMBER = re.compile(r"[0-9]{1,20}")
"""64 bits. More digits are nothing openvpn says, and none that float() or int() like."""
_TRAFFIC = re.compile(r"SUCCESS: nclients=[0-9]+,bytesin=([0-9]{1,20}),bytesout=([0-9]{1,20})")
_NEW_ATTEMPT = re.compile(r"SIG\w+\[(soft|hard)")


@dataclass(frozen=True)
class State:
    """The answer to `state`."""

    name: str = ""
    """`CONNECTED`, `WAIT`, `RECONNECTING` … as openvpn calls it."""
    since: float = 0.0
    """Seconds since 1970."""
    why: str = ""
    """Of `RECONNECTING` and `EXITING`: one word."""
    address: IPv4Address | None = None
    """What the server gave the client; while connected only."""


@dataclass(frozen=True)
class Account:
    """What the log tells of the newest attempt to connect that told anything."""

    push: PushReply | None = None
    said: Said | None = None
    """Why there was no tunnel, last time."""
    said_at: float = 0.0
    """Seconds since 1970."""


def parse_state(line: str) -> State:
    """`time,name,detail,local IP,…`; anything else is a state without a name."""
    time, *fields = line.split(",")
    if not _NUMBER.fullmatch(time) or len(fields) < 3:
        return State()
    name, why, local = fields[:3]
    try:
        address = IPv4Address(local) if name == "CONNECTED" else None
    except AddressValueError:
        address = None
    return State(name, float(time), why if name in ("RECONNECTING", "EXITING") else "", address)


def parse_traffic(line: str) -> tuple[int, int]:
    """(received, sent) bytes of the answer to `load-stats`; zeros for anything else."""
    found = _TRAFFIC.fullmatch(line.strip())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def read_log(lines: Iterable[str]) -> Account:
    """Of the answer to `log all`, `time,flags,text` each, oldest first."""
    account = Account()
    pushed = explained = False  # Both in the attempt that is read just now, as is `heard`.
    over_tcp = False
    heard = True  # Unless it is seen to begin: the oldest lines of a long log are gone.
    for line in lines:
        time, _, text = (*line.split(",", 2), "", "")[:3]
        if text.startswith(_PUSH):
            reply = parse_push(text.removeprefix(_PUSH).removesuffix("'"))
            if reply is not None:
                known = account.push if pushed else None
                account = replace(account, push=known.joined(reply) if known else reply)
                pushed = True
            continue  # The rest is the server's own text.
        if "Initialization Sequence Completed" in text:
            account = replace(account, said=None)
        elif _NEW_ATTEMPT.search(text):
            pushed = explained = False
        elif "TCP connection established with" in text:
            heard, over_tcp = False, True
        elif "TLS: Initial packet from" in text:
            heard = True
        said = _explain(text, heard=heard)
        if over_tcp and _NOT_UNWRAPPED.search(text):
            said = _OTHER_KEY
        if said is not None and not (explained and _is_vague(said)):
            said_at = float(time) if _NUMBER.fullmatch(time) else 0.0
            account = replace(account, said=said, said_at=said_at)
            explained = True
    return account


def _explain(text: str, *, heard: bool) -> Said | None:
    """What a line of the log says is wrong. Nothing of its own text is handed on."""
    for pattern, said in _SAYINGS:
        if pattern.search(text):
            return said
    if "Connection reset, restarting" in text:
        return _HUNG_UP if heard else _HUNG_UP_AT_ONCE
    return None


def _is_vague(said: Said) -> bool:
    return said in (_HUNG_UP, _TLS_FAILED)


_HUNG_UP = Said(Fault.REFUSED, "closed the connection")
_HUNG_UP_AT_ONCE = Said(
    Fault.TLS,
    "closes the connection at the first packet, as servers do when the profile's tls-crypt or"
    " tls-auth key is not theirs",
)
_OTHER_KEY = Said(Fault.TLS, "answers with another tls-crypt or tls-auth key than the profile's")
_NOT_UNWRAPPED = re.compile(r"packet (HMAC )?authentication failed")
_TLS_FAILED = Said(Fault.TLS, "does not complete the TLS handshake")

_SAYINGS = tuple(
    (re.compile(pattern), Said(fault, words) if words else _TLS_FAILED)
    for pattern, fault, words in (
        (
            r"AUTH_FAILED,.*(cipher|negotiat)|failed to negotiate cipher",
            Fault.CONFIG,
            "wants a data cipher that the profile does not allow",
        ),
        (r"AUTH_FAILED,TEMP", Fault.REFUSED, "asks to come back later"),
        (r"AUTH_FAILED", Fault.AUTH, "refused the login"),
        (
            r"VERIFY ERROR: .*error=certificate is not yet valid",
            Fault.CLOCK,
            "shows a certificate that is not valid yet by this machine's clock",
        ),
        (
            r"VERIFY ERROR: .*error=certificate has expired",
            Fault.TLS,
            "shows a certificate that has expired by this machine's clock",
        ),
        (
            r"VERIFY ERROR: .*error=(certificate revoked|CRL )",
            Fault.TLS,
            "shows a certificate that its provider called back",
        ),
        (r"VERIFY ERROR", Fault.TLS, "shows a certificate that is not of the profile's CA"),
        (
            r"VERIFY (E?KU|X509NAME|nsCertType) ERROR",
            Fault.TLS,
            "shows a certificate that is not that server's",
        ),
        (
            r"alert (certificate expired|bad certificate|unknown ca|certificate unknown"
            r"|certificate revoked|access denied|decrypt error)|alert certificate required",
            Fault.TLS,
            "does not accept the profile's certificate",
        ),
        (
            r"alert (protocol version|handshake failure)|no shared cipher|unsupported protocol",
            Fault.CONFIG,
            "agrees to no version or cipher of TLS that the profile allows",
        ),
        (r"TLS handshake failed|TLS object -> incoming plaintext read error", Fault.TLS, ""),
        (r"Connection refused|\bECONNREFUSED\b", Fault.REFUSED, "refuses connections"),
        (r"No route to host|Network is unreachable", Fault.REFUSED, "cannot be reached"),
    )
)
