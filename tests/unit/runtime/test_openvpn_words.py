"""What openvpn says, read: states, traffic, and the log of attempts that failed or worked.

The lines are those of openvpn 2.6.14.
"""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.fault import Fault
from chainctl.runtime.openvpn_words import State, parse_state, parse_traffic, read_log

CONNECTED = "1795272214,CONNECTED,SUCCESS,10.8.0.2,192.0.2.1,1194,192.0.2.2,20000"
REPLY = "PUSH: Received control message: 'PUSH_REPLY,ifconfig 10.8.0.2 255.255.255.0,peer-id 0'"
DONE = "Initialization Sequence Completed"
AGAIN = "SIGUSR1[soft,tls-error] received, process restarting"
JOINED = "TCP connection established with [AF_INET]192.0.2.1:443"
HEARD = "TLS: Initial packet from [AF_INET]192.0.2.1:1194, sid=df3eb3fd b9fe7722"


def log(*texts: str) -> list[str]:
    return [f"{1795272000 + number},I,{text}" for number, text in enumerate(texts)]


def test_states() -> None:
    assert parse_state(CONNECTED) == State("CONNECTED", 1795272214.0, "", IPv4Address("10.8.0.2"))
    assert parse_state("1795272188,AUTH,,,,,,") == State("AUTH", 1795272188.0)
    again = parse_state("1795272188,RECONNECTING,tls-error,,,,,")
    assert (again.name, again.why, again.address) == ("RECONNECTING", "tls-error", None)


@given(st.text())
def test_no_state_is_none(text: str) -> None:
    assert parse_state(f"x{text}") == State()


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000, "", "-1"])
def test_what_is_no_number_stops_nobody(number: str) -> None:
    assert parse_state(f"{number},CONNECTED,SUCCESS,10.8.0.2,,,,") == State()
    assert parse_traffic(f"SUCCESS: nclients=0,bytesin={number},bytesout=1") == (0, 0)
    assert read_log([f"{number},I,AUTH: Received control message: AUTH_FAILED"]).said_at == 0


def test_traffic() -> None:
    assert parse_traffic("SUCCESS: nclients=0,bytesin=3244,bytesout=3205") == (3244, 3205)
    assert parse_traffic("ERROR: unknown command") == (0, 0)


def test_a_log_of_a_tunnel_that_works() -> None:
    account = read_log(log(HEARD, REPLY, DONE))
    assert account.said is None
    assert account.push
    assert account.push.address == IPv4Address("10.8.0.2")


@pytest.mark.parametrize(
    ("fault", "texts"),
    [
        (Fault.AUTH, ["AUTH: Received control message: AUTH_FAILED"]),
        (Fault.AUTH, ["AUTH: Received control message: AUTH_FAILED,Password expired", AGAIN]),
        (Fault.REFUSED, ["AUTH: Received control message: AUTH_FAILED,TEMP[backoff 5]"]),
        (
            Fault.CONFIG,
            [
                "AUTH: Received control message: AUTH_FAILED,"
                "Data channel cipher negotiation failed (no shared cipher)"
            ],
        ),
        (
            Fault.CLOCK,
            [
                "VERIFY ERROR: depth=0, error=certificate is not yet valid: CN=server, serial=1",
                "TLS_ERROR: BIO read tls_read_plaintext error",
                "TLS Error: TLS object -> incoming plaintext read error",
                "TLS Error: TLS handshake failed",
                AGAIN,
            ],
        ),
        (
            Fault.TLS,
            [
                "VERIFY ERROR: depth=0, error=certificate has expired: CN=server, serial=1",
                "TLS Error: TLS handshake failed",
            ],
        ),
        (Fault.TLS, ["VERIFY EKU ERROR", "TLS Error: TLS handshake failed", AGAIN]),
        (Fault.TLS, ["TLS Error: TLS handshake failed", AGAIN]),
        (Fault.TLS, [JOINED, "Connection reset, restarting [0]", AGAIN]),
        (Fault.TLS, [JOINED, "tls-crypt unwrap error: packet authentication failed"]),
        (Fault.REFUSED, [JOINED, HEARD, "Connection reset, restarting [0]", AGAIN]),
        # The log no longer has the beginning of a connection that was there for long.
        (Fault.REFUSED, ["Connection reset, restarting [0]", AGAIN]),
        (
            Fault.REFUSED,
            ["TCP: connect to [AF_INET]192.0.2.1:443 failed: Connection refused", AGAIN],
        ),
    ],
)
def test_why_there_is_no_tunnel(fault: Fault, texts: list[str]) -> None:
    account = read_log(log("OpenVPN 2.6.14", *texts))
    assert account.said
    assert account.said.fault is fault
    assert account.said_at == 1795272001 or len(texts) > 1
    # An attempt that works has the last word, one that begins has none yet.
    assert read_log(log(*texts, HEARD, REPLY, DONE)).said is None
    assert read_log(log(*texts, HEARD)).said == account.said


@pytest.mark.parametrize(
    "text",
    [
        "tls-crypt unwrap error: packet replay",
        "TLS Error: tls-crypt unwrapping failed from [AF_INET]192.0.2.1:1194",
        "Authenticate/Decrypt packet error: packet HMAC authentication failed",
        "TLS Error: incoming packet authentication failed from [AF_INET]192.0.2.1:1194",
    ],
)
def test_a_packet_from_nobody_knows_whom_says_nothing_of_the_server(text: str) -> None:
    assert read_log(log("OpenVPN 2.6.14", text)).said is None


def test_a_vague_word_does_not_hide_a_clear_one() -> None:
    clear = "VERIFY ERROR: depth=0, error=certificate is not yet valid: CN=server"
    vague = "TLS Error: TLS handshake failed"
    assert read_log(log(clear, vague)).said == read_log(log(clear)).said
    assert read_log(log(clear, vague, AGAIN, vague)).said == read_log(log(vague)).said


def test_the_servers_own_words_say_nothing_of_what_is_wrong() -> None:
    hostile = REPLY.removesuffix("'") + ",echo AUTH_FAILED VERIFY ERROR Connection refused'"
    assert read_log(log(hostile)).said is None


@given(st.lists(st.text()))
def test_any_log_can_be_read(lines: list[str]) -> None:
    read_log(lines)
