"""Sends one datagram of each size and says what became of it; runs as a client in a lab.

    size_client.py ADDRESS KIND SIZES

KIND: `udp` and `icmp` may be fragmented on the way, `udp-df` and `icmp-df` may not. SIZES is a
JSON list of payload bytes. Prints one JSON object: {"answered": sizes, "refused": sizes that
the kernel would not send, "lost": sizes without an answer, "garbled": sizes answered with
something else, "mtu": what the socket has learned of the path}. What is lost is sent again, at
most five times: a queue that was full says nothing about sizes.
"""

import hashlib
import json
import select
import socket
import struct
import sys
import time

_IP_MTU_DISCOVER, _DONT, _DO, _IP_MTU = 10, 0, 2, 14
_ROUNDS = 6
_PER_SECOND = 1000
_PATIENCE = 1.5
_IDENTIFIER = 4711
_KEYSTREAM = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(64))


def main() -> None:
    address, kind, open_sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    sock = open_socket(kind, address)
    answered: set[int] = set()
    refused: set[int] = set()
    garbled: set[int] = set()
    for _ in range(_ROUNDS):
        send_all(sock, kind, open_sizes, answered, refused, garbled)
        open_sizes = [s for s in open_sizes if s not in answered | refused | garbled]
        if not open_sizes:
            break
    facts = {
        "answered": sorted(answered),
        "refused": sorted(refused),
        "lost": open_sizes,
        "garbled": sorted(garbled),
        "mtu": sock.getsockopt(socket.IPPROTO_IP, _IP_MTU),
    }
    print(json.dumps(facts))  # noqa: T201


def open_socket(kind: str, address: str) -> socket.socket:
    if kind.startswith("udp"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    may_not = kind.endswith("-df")
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO if may_not else _DONT)
    sock.connect((address, 7))
    sock.setblocking(False)
    return sock


def send_all(
    sock: socket.socket,
    kind: str,
    sizes: list[int],
    answered: set[int],
    refused: set[int],
    garbled: set[int],
) -> None:
    """At a steady pace, listening meanwhile, then until nothing has come for a while."""
    begun = time.monotonic()
    for number, size in enumerate(sizes):
        if not try_to_send(sock, render(kind, size)):
            refused.add(size)
        listen(sock, kind, begun + (number + 1) / _PER_SECOND, answered, garbled)
    wanted = set(sizes) - refused
    while wanted - answered - garbled:
        heard = len(answered) + len(garbled)
        listen(sock, kind, time.monotonic() + _PATIENCE, answered, garbled, stop=1)
        if len(answered) + len(garbled) == heard:
            return


def try_to_send(sock: socket.socket, packet: bytes) -> bool:
    """False when it is too long. The first refusal may be about a packet sent earlier."""
    for _ in range(2):
        try:
            sock.send(packet)
        except OSError:
            continue
        return True
    return False


def listen(
    sock: socket.socket,
    kind: str,
    until: float,
    answered: set[int],
    garbled: set[int],
    stop: int = 0,
) -> None:
    """Until then, or until `stop` answers came."""
    while (left := until - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return
        try:
            packet = sock.recv(65536)
        except OSError:
            continue  # The path's MTU was exceeded; the socket has learned it now.
        payload = parse(kind, packet)
        if payload is None:
            continue
        (answered if payload == body(len(payload)) else garbled).add(len(payload))
        if stop:
            return


def render(kind: str, size: int) -> bytes:
    if kind.startswith("udp"):
        return body(size)
    head = struct.pack("!BBHHH", 8, 0, 0, _IDENTIFIER, size & 0xFFFF)
    return struct.pack(
        "!BBHHH", 8, 0, checksum(head + body(size)), _IDENTIFIER, size & 0xFFFF
    ) + body(size)


def parse(kind: str, packet: bytes) -> bytes | None:
    """The payload that came back; None for anything that is no answer."""
    if kind.startswith("udp"):
        return packet.partition(b"\n")[2]
    icmp = packet[20:]
    if icmp[0] != 0 or struct.unpack_from("!H", icmp, 4)[0] != _IDENTIFIER:
        return None
    return icmp[8:]


def body(size: int) -> bytes:
    """Different in every block of 32 bytes, so that a lost or swapped part is seen."""
    return _KEYSTREAM[:size]


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


if __name__ == "__main__":
    main()
