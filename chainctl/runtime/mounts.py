"""A small tmpfs for each client: its control socket, its device nodes, and what it prints."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from chainctl.errors import MendHost
from chainctl.runtime.bundle import CONFIG_FILE, DEVICES, ClientSpec

SIZE = 2**20
"""Bytes for all of it. A client that fills it gets ENOSPC, and wireguard-go lives on."""
_INODES = 64

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p),
    *(ctypes.c_ulong, ctypes.c_char_p),
]


def mount_small(target: Path) -> None:
    """Mount it on `target`, never swapped to disk where the kernel can promise that (6.4)."""
    options = f"size={SIZE},nr_inodes={_INODES},mode=0700"
    if _mount(target, f"{options},noswap") == errno.EINVAL:
        failed = _mount(target, options)
        if failed:
            raise MendHost(
                "C545", f"cannot mount a tmpfs: {os.strerror(failed)}", hint="run as root"
            )


def unmount(target: Path) -> None:
    """Unmount whatever is mounted on `target`, however often; nothing happens if nothing is."""
    while not _libc.umount2(bytes(target), _MNT_DETACH):
        pass
    failed = ctypes.get_errno()
    # EINVAL: not a mount point.
    if failed not in (errno.EINVAL, errno.ENOENT):
        raise MendHost(
            "C545", f"cannot unmount {target}: {os.strerror(failed)}", hint="run as root"
        )


def make_devices(folder: Path, uid: int) -> None:
    """The nodes of `DEVICES` below `folder`; the TUN node for `uid` alone."""
    for name, (major, minor) in DEVICES.items():
        node = folder / name
        node.parent.mkdir(exist_ok=True)
        os.mknod(node, stat.S_IFCHR, os.makedev(major, minor))
        node.chmod(0o666)
    tun = folder / "net/tun"
    tun.chmod(0o600)
    os.chown(tun, uid, uid)


def place_config(folder: Path, spec: ClientSpec) -> None:
    """The client's configuration, if it reads one, where only it and root can read it."""
    if spec.config is not None:
        file = folder / CONFIG_FILE
        file.touch(mode=0o440)
        os.chown(file, 0, spec.uid)
        file.write_text(spec.config.reveal())


def forget_config(folder: Path) -> None:
    """The client has read it, and keeps in memory what it needs."""
    (folder / CONFIG_FILE).unlink(missing_ok=True)


def _mount(target: Path, options: str) -> int:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc.mount(b"chainctl", bytes(target), b"tmpfs", flags, options.encode()):
        return ctypes.get_errno()
    return 0
