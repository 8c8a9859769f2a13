"""A lab with a chain in it, for rows about a whole chain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings

CHAINCTL = str(Path(sys.executable).with_name("chainctl"))


@contextmanager
def lab(purpose: str, hops: int, via: str = "") -> Iterator[Lab]:
    """A lab of this process's own, removed with everything in it; `via` as in its spec."""
    name = f"b{purpose}{os.getpid()}"[:16]
    try:
        engine = find_wireguard_go(Settings.load().image_dir)
        yield Lab.create(LabSpec(name, hops, spares=0, via=via), wireguard_go=engine)
    finally:
        remove(name)


def chainctl(one: Lab, *words: str) -> str:
    done = one.run("host", [CHAINCTL, *words], timeout=90)
    if done.returncode:
        raise RuntimeError(f"chainctl {words} exited with {done.returncode}: {done.stderr}")
    return done.stdout


def status(one: Lab) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(chainctl(one, "status", "--json"))["chains"][0]
    return facts


@contextmanager
def supervisor(one: Lab) -> Iterator[None]:
    """One that does not end when the last chain goes down; it listens when this is entered."""
    with one.popen("host", [CHAINCTL, "serve"], stdout=subprocess.DEVNULL) as process:
        try:
            settings = Settings.load({**os.environ, **one.environ})
            while not settings.socket_path.exists():
                if process.poll() is not None:
                    raise RuntimeError("the supervisor ended")
            yield
        finally:
            process.terminate()
