"""The BPF file system in which the filter's maps are pinned.

Called by `chainctl.net.filter`. It is to be mounted in the mount namespace the host uses: one
in a private namespace would die with the service.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from chainctl.errors import MendHost

_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC of linux/magic.h
_NOSUID_NODEV_NOEXEC = 0b1110
_DETACH = 2  # MNT_DETACH


def mount_bpffs(path: Path) -> None:
    """Make sure `path` is a bpffs that only root can enter. Raises MendHost C324."""
    if is_bpffs(path):
        return
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", str(path).encode(), b"bpf", _NOSUID_NODEV_NOEXEC, b"mode=0700"):
        reason = os.strerror(ctypes.get_errno())
        raise MendHost("C324", f"mounting a BPF file system on {path}: {reason}")


def is_bpffs(path: Path) -> bool:
    """The path lies in a bpffs; not when it was unmounted and the empty folder is left."""
    answer = ctypes.create_string_buffer(256)  # struct statfs begins with f_type, a long
    if ctypes.CDLL(None, use_errno=True).statfs(str(path).encode(), answer):
        return False
    return ctypes.c_long.from_buffer(answer).value == _MAGIC


def unmount_bpffs(path: Path) -> None:
    """Take the file system and its folder away; programs in use stay attached. None is fine."""
    libc = ctypes.CDLL(None, use_errno=True)
    while is_bpffs(path):
        if libc.umount2(str(path).encode(), _DETACH):
            reason = os.strerror(ctypes.get_errno())
            raise MendHost("C324", f"unmounting the BPF file system on {path}: {reason}")
    if path.is_dir():
        path.rmdir()
