"""A small program that makes network namespaces; `chainctl.host.netns` runs and feeds it.

It is a process of its own because unshare(CLONE_NEWUSER) is refused to a process with
threads (unshare(2)), and it stays for several requests because starting Python costs more
than all namespaces of a chain. It imports nothing of chainctl and nothing outside the
standard library: it is run as `python -I -S nsmaker.py`.

Standard input is a SEQPACKET socket. Each request is one byte; the answer is either `ok`
with the descriptor of a new network namespace, or the number of the errno that refused it.
It ends when the other side is closed, so a killed supervisor leaves none behind.
"""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

_NEWUSER_NEWNET = 0x10000000 | 0x40000000

# Every uid and gid is itself in the new user namespace, except 0, which does not exist there.
# The identity is needed because nftables' `skuid` compares in the namespace's own numbers
# (net/netfilter/nft_meta.c): with nothing mapped all clients would look like uid 65534.
# Root is left out so that uid 0 owns none of the namespace's settings (net/sysctl_net.c).
_ALL_BUT_ROOT = "1 1 4294967294"


def main() -> None:
    with socket.socket(fileno=0) as door:
        while door.recv(1):
            try:
                _answer(door)
            except BrokenPipeError:
                return


def _answer(door: socket.socket) -> None:
    try:
        namespace = _make()
    except OSError as error:
        door.send(str(error.errno).encode())
        return
    try:
        socket.send_fds(door, [b"ok"], [namespace])
    finally:
        os.close(namespace)


def _make() -> int:
    """A descriptor of a new network namespace that a new user namespace owns."""
    said_read, said_write = os.pipe()
    hold_read, hold_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hold_write)
        _unshare_and_wait(said_write, hold_read)
    os.close(said_write)
    os.close(hold_read)
    try:
        refusal = int(os.read(said_read, 16) or b"5")
        if refusal:
            raise OSError(refusal, os.strerror(refusal))
        process = Path(f"/proc/{pid}")
        (process / "uid_map").write_text(_ALL_BUT_ROOT)
        (process / "gid_map").write_text(_ALL_BUT_ROOT)
        return os.open(process / "ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(said_read)
        os.close(hold_write)
        os.waitpid(pid, 0)


def _unshare_and_wait(said: int, hold: int) -> None:
    """In the child: make the namespaces, say so, and hold them until the parent has them."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.unshare(_NEWUSER_NEWNET)
    os.write(said, str(ctypes.get_errno() if failed else 0).encode())
    os.read(hold, 1)
    os._exit(0)


if __name__ == "__main__":
    main()
