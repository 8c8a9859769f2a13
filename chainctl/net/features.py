"""What the kernel can do, found by doing it where it harms nobody.

Each probe runs on a thread that has left for a network namespace of its own. The namespace
ends with the thread and takes every link, table and filter made in it along; maps and
programs end with their descriptors. Kernel modules that a probe makes the kernel load stay
loaded, as they would after `chainctl up`. Called by `chainctl.net.facts`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from chainctl.errors import MendHost
from chainctl.host import nft
from chainctl.host.run import run
from chainctl.model.facts import Feature, Known, Reading

_CLONE_NEWNET = 0x40000000

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386, "ppc64le": 361}
"""bpf(2) by machine, from the kernel's syscall tables."""
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
"""The same on every architecture (Linux 5.2)."""

_MAP_CREATE, _PROG_LOAD = 0, 5
_HASH, _HASH_OF_MAPS, _DEVMAP_HASH, _RINGBUF = 1, 13, 25, 27
_SCHED_CLS = 3

# struct bpf_insn: code, registers, offset, immediate (linux/bpf.h).
_RETURN_0 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
_CALL_REDIRECT_PEER = struct.pack(
    "=BBhiBBhiBBhiBBhi",
    *(0xB7, 1, 0, 1),  # r1 = 1: an ifindex; the program is loaded and never run
    *(0xB7, 2, 0, 0),  # r2 = 0: flags
    *(0x85, 0, 0, 155),  # call bpf_redirect_peer
    *(0x95, 0, 0, 0),  # exit
)

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

_ENTER_NAMESPACES = (
    "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
    "failed = libc.unshare(0x10000000) or libc.unshare(0x40000000); "
    "print(ctypes.get_errno() if failed else 0)"
)
"""unshare(CLONE_NEWUSER) is refused to a process with threads, hence a program of its own."""

_NFT_PROBES = {
    Feature.NFTABLES: """
        set s { type ifname; flags timeout; }
        chain c {
            type filter hook forward priority 0; policy drop;
            iifname @s accept
            drop
        }
    """,
    Feature.MASQUERADE: """
        chain c {
            type nat hook postrouting priority 100;
            meta nfproto ipv4 masquerade random,fully-random
        }
    """,
    Feature.STATELESS: """
        chain c {
            type filter hook prerouting priority -300;
            iifname "a" notrack
            iifname "b" ct zone set 101
            ip daddr set 192.0.2.1
        }
        chain d {
            type filter hook forward priority 0;
            tcp flags syn tcp option maxseg size set rt mtu
        }
    """,
}


def read_features() -> Mapping[Feature, Reading]:
    """Try every feature; about 60 ms, most of it for `runc --version`."""
    with ThreadPoolExecutor(1, thread_name_prefix="probe") as thread:
        tried = thread.submit(_try_in_namespace).result()
    return tried | {
        Feature.BPFFS: _reading(_mount_bpffs),
        Feature.USERNS: _reading(_enter_user_namespace),
        Feature.RUNC: _reading(_runc_version),
        Feature.LIBBPF: _reading(_libbpf_version),
        Feature.LIBNFTABLES: _reading(lambda: _open_library("libnftables.so.1")),
    }


def _try_in_namespace() -> dict[Feature, Reading]:
    """Runs on a thread of its own, which never comes back to the namespace it began in."""
    entered = _reading(_leave_for_own_namespace)
    probes = _namespace_probes()
    if entered.known is not Known.YES:
        untried = Reading(Known.UNKNOWN, f"no namespace to try it in: {entered.detail}")
        return {Feature.NETNS: entered} | dict.fromkeys(probes, untried)
    return {Feature.NETNS: entered} | {
        feature: _reading(probe) for feature, probe in probes.items()
    }


def _namespace_probes() -> dict[Feature, Callable[[], str]]:
    return {
        Feature.TC_BPF: _attach_classifier,
        Feature.REDIRECT_PEER: _load_redirect_peer,
        Feature.DEVMAP_HASH: lambda: _create_map(_DEVMAP_HASH, 4, 4, 1),
        Feature.HASH_OF_MAPS: _create_hash_of_maps,
        Feature.RINGBUF: lambda: _create_map(_RINGBUF, 0, 0, mmap.PAGESIZE),
        Feature.VETH: _add_veth,
        Feature.MACVLAN: _add_macvlan,
        Feature.TUN: _open_tun,
        Feature.WIREGUARD: _add_wireguard,
    } | {feature: functools.partial(_apply_nft, rules) for feature, rules in _NFT_PROBES.items()}


class _CannotTry(Exception):
    """The question cannot be asked here; the answer stays unknown."""


def _reading(probe: Callable[[], str]) -> Reading:
    try:
        return Reading(Known.YES, probe())
    except _CannotTry as error:
        return Reading(Known.UNKNOWN, str(error))
    except NetlinkError as error:
        return _refused(error.code, os.strerror(error.code))
    except OSError as error:
        return _refused(error.errno, error.strerror or str(error))
    except MendHost as error:
        return _refused(None, error.message.splitlines()[0])


def _refused(number: int | None, words: str) -> Reading:
    forbidden = number in (errno.EPERM, errno.EACCES) or "Operation not permitted" in words
    if forbidden and os.geteuid() != 0:
        return Reading(Known.UNKNOWN, "only root can try it")
    return Reading(Known.NO, words)


# Namespaces, links ------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _leave_for_own_namespace() -> str:
    _checked(_libc().unshare(_CLONE_NEWNET))
    return ""


def _enter_user_namespace() -> str:
    number = int(run([sys.executable, "-I", "-S", "-c", _ENTER_NAMESPACES], timeout=10))
    if number == errno.ENOSPC:
        raise OSError(number, "user.max_user_namespaces is used up or 0")
    if number:
        raise OSError(number, os.strerror(number))
    return ""


@contextmanager
def _veth() -> Iterator[tuple[IPRoute, int]]:
    """A netlink socket and the index of one end of a veth pair, removed afterwards."""
    with IPRoute() as netlink:
        netlink.link("add", ifname="probe0", kind="veth", peer="probe1")
        index = netlink.link_lookup(ifname="probe0")[0]
        try:
            yield netlink, index
        finally:
            netlink.link("del", index=index)


def _add_veth() -> str:
    with _veth():
        return ""


def _add_macvlan() -> str:
    with _veth() as (netlink, index):
        netlink.link("add", ifname="probe2", kind="macvlan", link=index, macvlan_mode="bridge")
    return ""


def _add_wireguard() -> str:
    with IPRoute() as netlink:
        netlink.link("add", ifname="probe3", kind="wireguard")
    return ""


def _open_tun() -> str:
    """The device is not persistent: it goes when the descriptor is closed."""
    node = Path("/dev/net/tun")
    if not node.exists():
        raise OSError(errno.ENOENT, f"{node} is missing")
    with node.open("r+b", buffering=0) as tun:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"probe4", _IFF_TUN | _IFF_NO_PI))
    return ""


def _apply_nft(rules: str) -> str:
    nft.apply(f"table inet probe {{ {rules} }}")
    nft.apply("delete table inet probe")
    return ""


# BPF --------------------------------------------------------------------------------------


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2); returns a descriptor for the caller to close."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise _CannotTry(f"the number of bpf(2) on {platform.machine()} is not known here")
    block = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    return _checked(_libc().syscall(number, command, block, len(block)))


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _new_map(kind: int, key: int, value: int, entries: int, inner: int = 0) -> int:
    return _bpf(_MAP_CREATE, struct.pack("=6I", kind, key, value, entries, 0, inner))


def _create_map(kind: int, key: int, value: int, entries: int) -> str:
    with _closing(_new_map(kind, key, value, entries)):
        return ""


def _create_hash_of_maps() -> str:
    with (
        _closing(_new_map(_HASH, 4, 4, 1)) as inner,
        _closing(_new_map(_HASH_OF_MAPS, 4, 4, 1, inner)),
    ):
        return ""


def _load(instructions: bytes) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ",
        _SCHED_CLS,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
    )
    return _bpf(_PROG_LOAD, attributes)


def _load_redirect_peer() -> str:
    with _closing(_load(_CALL_REDIRECT_PEER)):
        return ""


def _attach_classifier() -> str:
    with _closing(_load(_RETURN_0)) as fd, _veth() as (netlink, index):
        netlink.tc("add", "clsact", index)
        netlink.tc(
            "add-filter",
            "bpf",
            index,
            ":1",
            fd=fd,
            name="probe",
            parent="ffff:fff2",
            classid=1,
            direct_action=True,
        )
    return ""


def _mount_bpffs() -> str:
    """A mount that is attached nowhere and goes with its descriptor."""
    libc = _libc()
    with _closing(_checked(libc.syscall(_SYS_FSOPEN, b"bpf", 1))) as context:
        _checked(libc.syscall(_SYS_FSCONFIG, context, 6, None, None, 0))  # FSCONFIG_CMD_CREATE
        with _closing(_checked(libc.syscall(_SYS_FSMOUNT, context, 1, 0))):
            return ""


# Tools ------------------------------------------------------------------------------------


def _runc_version() -> str:
    first = run(["runc", "--version"], timeout=10).splitlines()[:1]
    return "".join(first).removeprefix("runc version ")


def _libbpf_version() -> str:
    library = _library("libbpf.so.1")
    library.libbpf_version_string.restype = ctypes.c_char_p
    version: bytes = library.libbpf_version_string()
    return version.decode().removeprefix("v")


def _open_library(name: str) -> str:
    _library(name)
    return ""


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise OSError(errno.ENOENT, f"{name} is not installed") from None
