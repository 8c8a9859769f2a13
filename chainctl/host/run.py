"""The one door to other programs. The product calls only `runc` through it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from chainctl.errors import MendHost


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run `argv` to its end and return what it printed.

    Raises MendHost C301 when the program is missing, C302 when it does not end within
    `timeout` seconds, C303 when it exits with another status than 0 (its own words in the
    message).
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=None if env is None else dict(env),
            check=False,
        )
    except FileNotFoundError:
        raise MendHost(
            "C301", f"the program {argv[0]!r} is not installed", hint="chainctl doctor"
        ) from None
    except subprocess.TimeoutExpired:
        raise MendHost("C302", f"{argv[0]} did not end within {timeout:g} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise MendHost("C303", f"{' '.join(argv[:2])}: {words}")
    return done.stdout
