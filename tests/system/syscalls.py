"""What a program changed, as strace(1) saw it: system calls told apart by their effect.

Only what lasts longer than the process counts: files, mounts, messages to netlink that make,
change or remove something, entries of BPF maps, settings, TUN devices, programs started and
killed. Reading, and what a process does with its own memory and descriptors, does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FILES = (
    *("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2"),
    *("link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "truncate", "ftruncate"),
    *("chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown"),
)
MOUNTS = ("mount", "umount2", "move_mount", "pivot_root")
MESSAGES = ("sendto", "sendmsg", "sendmmsg")
PROCESSES = ("execve", "kill", "pidfd_send_signal")
WRITES = ("write", "pwrite64", "openat", "openat2")
CHANGING = (*FILES, *MOUNTS, *MESSAGES, *PROCESSES, *WRITES, "bpf", "ioctl")
"""System calls that may change something lasting; `effect` says whether one did."""

_TRACED = (*CHANGING, "clone", "clone3", "fork", "vfork", "unshare")

_LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$")
_UNFINISHED = " <unfinished ...>"
_TYPE = re.compile(r"nlmsg_type=([^,]+)")
_NUMBER = re.compile(r"0x[0-9a-f]+")
_OPENED = re.compile(r'^\S+ "([^"]*)", (\S+?)[,)]')
_NFT_READS = {0xA00 | number for number in (1, 4, 7, 10, 13, 16, 19, 20, 23)}
_BPF_CHANGES = ("BPF_MAP_UPDATE", "BPF_MAP_DELETE", "BPF_OBJ_PIN", "BPF_LINK_CREATE")
_TUN = ("TUNSETIFF", "TUNSETPERSIST", "TUNSETOWNER", "TUNSETGROUP")
_WRITES = ("O_CREAT", "O_TRUNC")
_KERNELS_OWN = ("/proc/", "/sys/", "/dev/")
"""Opening a file there changes nothing, whatever the flags."""


def command(output: Path, *more: str) -> list[str]:
    """The strace to be put in front of a program, or before `-p PID`; it follows children."""
    trace = ",".join(f"?{name}" for name in _TRACED)
    return ["strace", "-f", "-y", "-s", "200", "-o", str(output), "-e", f"trace={trace}", *more]


@dataclass(frozen=True)
class Call:
    pid: int
    """Of the thread."""
    name: str
    text: str
    """Its arguments and its result."""

    def __str__(self) -> str:
        return f"{self.pid} {self.name}({self.text[:160]}"


def parse(lines: Iterable[str]) -> Iterator[Call]:
    """Calls in the order in which they began."""
    calls: list[Call] = []
    begun: dict[int, int] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        pid = int(match[1])
        if match[2]:
            text = match[3]
            if text.endswith(_UNFINISHED):
                text = text.removesuffix(_UNFINISHED)
                begun[pid] = len(calls)
            calls.append(Call(pid, match[2], text))
        elif pid in begun:
            at = begun.pop(pid)
            calls[at] = Call(pid, calls[at].name, calls[at].text + match[5])
    yield from calls


def effect(call: Call) -> str:
    """What it changed, in a word; empty when nothing that lasts, or when it was refused."""
    if re.search(r"\) += -1 E", call.text):
        return ""
    match call.name:
        case name if name in FILES:
            return "file"
        case name if name in MOUNTS:
            return "mount"
        case name if name in MESSAGES:
            return _message(call.text)
        case "bpf":
            return "bpf" if call.text.startswith(_BPF_CHANGES) else ""
        case "ioctl":
            return "tun" if any(word in call.text for word in _TUN) else ""
        case "openat" | "openat2":
            return "file" if _opens_to_write(call.text) else ""
        case "write" | "pwrite64":
            path = written_to(call)
            return "setting" if path.startswith(_KERNELS_OWN) else "content" if path else ""
        case "execve":
            return "program"
        case "kill" | "pidfd_send_signal":
            return "signal"
        case _:
            return ""


def _opens_to_write(text: str) -> bool:
    opened = _OPENED.match(text)
    if opened is None or opened[1].startswith(_KERNELS_OWN):
        return False
    return any(flag in opened[2] for flag in _WRITES)


def written_to(call: Call) -> str:
    """The file a call writes to; empty for pipes, sockets and devices."""
    match = re.match(r"\d+<(/[^>]*)>", call.text)
    return match[1] if match and not match[1].startswith("/dev/") else ""


def _message(text: str) -> str:
    if "set=1\\n" in text:
        return "tunnel"
    kinds = _TYPE.findall(text)
    return "netlink" if any(_is_change(kind) for kind in kinds) else ""


def _is_change(kind: str) -> bool:
    number = _NUMBER.match(kind)
    if number is None:
        return "GET" not in kind and not kind.startswith(("NLMSG_", "nlctrl"))
    value = int(number[0], 16)
    if value >> 8 == 10:
        return value not in _NFT_READS
    # rtnetlink counts NEW, DEL, GET, SET; below 16 are messages about messages (netlink(7)).
    return value >= 16 and value % 4 != 2
