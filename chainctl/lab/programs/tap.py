"""Counts who talks to whom on an interface, and how often a marker's bytes pass in the clear.

Run inside a lab's namespace as `python -I tap.py INTERFACE MARKER_IN_HEX`. Prints `ready`
when it listens, and on SIGTERM one JSON object: {"flows": {"a:p -> b:q udp": packets},
"marker": frames}. Ends by itself after a minute.
"""

import collections
import json
import select
import signal
import socket
import struct
import sys
import time

_LONGEST = 60.0
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


def main() -> None:
    interface, marker = sys.argv[1], bytes.fromhex(sys.argv[2])
    flows: collections.Counter[str] = collections.Counter()
    seen = 0
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind((interface, 0))
        tap.setblocking(False)
        print("ready", flush=True)  # noqa: T201
        end = time.monotonic() + _LONGEST
        while not stopped and time.monotonic() < end:
            if not select.select([tap], [], [], 0.1)[0]:
                continue
            frame = tap.recv(65536)
            flows[describe(frame)] += 1
            seen += marker in frame
    print(json.dumps({"flows": flows, "marker": seen}), flush=True)  # noqa: T201


def describe(frame: bytes) -> str:
    kind = struct.unpack_from("!H", frame, 12)[0]
    if kind == 0x0806:
        return "arp"
    if kind != 0x0800:
        return f"ethertype {kind:#06x}"
    packet = frame[14:]
    source, target = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
    protocol = _PROTOCOLS.get(packet[9], str(packet[9]))
    if packet[9] not in (6, 17):
        return f"{source} -> {target} {protocol}"
    sport, dport = struct.unpack_from("!HH", packet, (packet[0] & 15) * 4)
    return f"{source}:{sport} -> {target}:{dport} {protocol}"


if __name__ == "__main__":
    main()
