"""The control groups of one supervisor's clients: where they are, whoever asks.

`chainctl.runtime.cgroups` works with them; a lab removes those that a supervisor inside it left
behind, which it cannot ask any more.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path


def group_of(run_dir: Path) -> str:
    """Two supervisors with directories of their own do not meet in the groups either."""
    tag = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    return f"/chainctl-{tag}"


def remove_empty(group: str) -> None:
    """Remove the group and those below it in every mounted hierarchy, unless somebody is there."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            place = Path(before.split()[4]) / group.strip("/")
            for each in (*place.glob("*/"), place):
                with contextlib.suppress(OSError):
                    each.rmdir()
