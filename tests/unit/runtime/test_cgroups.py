from __future__ import annotations

from pathlib import Path

from chainctl.runtime.cgroups import parse_mounts

HYBRID = """\
24 19 0:22 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
25 24 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
26 24 0:24 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
27 24 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 24 0:26 / /sys/fs/cgroup/systemd rw shared:8 master:2 - cgroup cgroup rw,name=systemd
"""


def test_both_versions_are_read_with_any_number_of_optional_fields() -> None:
    mounts = parse_mounts(HYBRID)
    root = Path("/sys/fs/cgroup")
    assert set(mounts) == {root / name for name in ("unified", "cpu,cpuacct", "memory", "systemd")}
    assert mounts[root / "unified"] is None
    controllers = mounts[root / "cpu,cpuacct"]
    assert controllers is not None
    assert {"cpu", "cpuacct"} <= controllers


def test_what_cannot_be_written_does_not_count() -> None:
    assert parse_mounts("9 8 0:1 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n") == {}
