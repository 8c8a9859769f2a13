"""The far end of the lab's internet: web, echo and DNS that say which source they see.

    target.py ADDRESS READY_FD

TCP 80   `GET /` (any path) answers {"source": ip, "port": port} as JSON
TCP 7    "SOURCE ip port\\n", then every byte back
UDP 7    "SOURCE ip port\\n" followed by the datagram
53       DNS over UDP and TCP: `whoami.lab` is the asker's address (A, TXT), every other name
         has the A record 45.100.0.53

One event loop, so that a client that reads slowly holds up nobody. A byte is written to
READY_FD when all ports are bound.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import cast

_RECEIVE_BUFFER = 8 << 20
_IDLE_SECONDS = 300.0
_A, _TXT = 1, 16
_SOMEWHERE = IPv4Address("45.100.0.53")

Peer = tuple[str, int]


def main() -> None:
    address, ready = sys.argv[1], int(sys.argv[2])
    asyncio.run(_serve(address, ready))


async def _serve(address: str, ready: int) -> None:
    loop = asyncio.get_running_loop()
    for port, protocol in ((7, _UdpEcho), (53, _UdpDns)):
        await loop.create_datagram_endpoint(protocol, sock=_datagram_socket(address, port))
    for port, conversation in ((80, _web), (7, _tcp_echo), (53, _tcp_dns)):
        await asyncio.start_server(conversation, address, port, backlog=1024)
    os.write(ready, b"1")
    os.close(ready)
    await asyncio.Event().wait()


def _datagram_socket(address: str, port: int) -> socket.socket:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_BUFFER)  # SO_RCVBUFFORCE
    # Large answers are fragmented, as echo servers do: the datagram was let through once.
    out.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
    out.bind((address, port))
    out.setblocking(False)
    return out


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        # More than a datagram holds is cut at the end.
        self.transport.sendto((_source_line(addr) + data)[:65507], addr)


class _UdpDns(_UdpEcho):
    def datagram_received(self, data: bytes, addr: Peer) -> None:
        if answer := dns_answer(data, addr[0]):
            self.transport.sendto(answer, addr)


async def _web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def talk(peer: Peer) -> None:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _IDLE_SECONDS)
        body = json.dumps({"source": peer[0], "port": peer[1]}).encode() + b"\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()

    await _converse(talk, writer)


async def _tcp_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def talk(peer: Peer) -> None:
        writer.write(_source_line(peer))
        while data := await asyncio.wait_for(reader.read(65536), _IDLE_SECONDS):
            writer.write(data)
            await writer.drain()

    await _converse(talk, writer)


async def _tcp_dns(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def talk(peer: Peer) -> None:
        while True:
            head = await asyncio.wait_for(reader.readexactly(2), _IDLE_SECONDS)
            (length,) = struct.unpack("!H", head)
            answer = dns_answer(await reader.readexactly(length), peer[0])
            writer.write(struct.pack("!H", len(answer)) + answer)
            await writer.drain()

    await _converse(talk, writer)


async def _converse(talk: Callable[[Peer], Awaitable[None]], writer: asyncio.StreamWriter) -> None:
    """Whatever a client does wrong ends its own connection and nothing else."""
    try:
        await talk(writer.get_extra_info("peername"))
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


def _source_line(peer: Peer) -> bytes:
    return f"SOURCE {peer[0]} {peer[1]}\n".encode()


def dns_answer(question: bytes, source: str) -> bytes:
    """The answer to a query with one question (RFC 1035 §4), b"" to what is none."""
    if len(question) < 17 or question[2] & 0x80 or question[4:6] != b"\0\1":
        return b""
    name, end = _read_name(question, 12)
    if name is None or len(question) < end + 4:
        return b""
    (kind,) = struct.unpack("!H", question[end : end + 2])
    records = _records(name, kind, source)
    flags = 0x8480 | (question[2] & 0x01) << 8  # answer, authoritative, recursion as asked
    head = question[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0)
    body = b"".join(
        b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 0, len(data)) + data for data in records
    )
    return head + question[12 : end + 4] + body


def _records(name: str, kind: int, source: str) -> list[bytes]:
    asked = name == "whoami.lab"
    if kind == _A:
        return [IPv4Address(source if asked else _SOMEWHERE).packed]
    if kind == _TXT and asked:
        return [bytes([len(source)]) + source.encode()]
    return []


def _read_name(message: bytes, at: int) -> tuple[str | None, int]:
    labels = []
    while at < len(message) and message[at]:
        length = message[at]
        if length > 63:
            return None, at
        labels.append(message[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
        at += 1 + length
    return (".".join(labels) if at < len(message) else None), at + 1


if __name__ == "__main__":
    main()
