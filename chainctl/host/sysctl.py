"""Kernel settings of the namespace the calling thread is in.

Names are paths below /proc/sys (`net/ipv4/conf/eth0.5/forwarding`) and not sysctl(8)'s
dotted names, because the name of a link may contain dots.
"""

from __future__ import annotations

from pathlib import Path

from chainctl.errors import MendHost

_ROOT = Path("/proc/sys")


def read(name: str) -> str | None:
    """The setting's value; None when the kernel has no such setting (or link)."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> None:
    """Set `name`. Raises MendHost C319 when it does not exist or may not be written."""
    try:
        # O_CREAT, as open(…, "w") would use it, hides a missing setting behind EACCES.
        with (_ROOT / name).open("r+") as file:
            file.write(value)
    except OSError as error:
        raise MendHost(
            "C319",
            f"cannot set {name} to {value}: {error.strerror}",
            hint="run as root on a machine where /proc/sys is writable",
        ) from error
