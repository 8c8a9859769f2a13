"""Crash points: a test names a step, and this process ends there as by a power cut.

`CHAINCTL_CRASH_AT=17:before` ends it before step 17 of the first plan it executes (`after`:
right after). Steps count from 0 over all plans of the process. `CHAINCTL_CRASH_LOG=FILE`
writes each point that was passed, so that a test can compare them with the plan. Both are
read at each point: a test that shares the process can name a step of what comes next.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Moment = Literal["before", "after"]


class CrashPoints:
    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._step = 0

    def pass_by(self, moment: Moment, step: object) -> None:
        if name := self._environ.get("CHAINCTL_CRASH_LOG"):
            with Path(name).open("a") as log:
                log.write(f"{self._step}:{moment} {step}\n")
        if self._environ.get("CHAINCTL_CRASH_AT") == f"{self._step}:{moment}":
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "after":
            self._step += 1
