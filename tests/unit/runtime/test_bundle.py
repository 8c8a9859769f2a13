"""What a client is allowed, as runc reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chainctl.host.files import data_path
from chainctl.runtime.bundle import render_config, wireguard_client
from tests.conftest import Golden

PROFILE = "seccomp-wireguard.json"


def config() -> str:
    spec = wireguard_client(
        "home.hop1.a",
        netns=Path("/run/chainctl/netns/home.hop1"),
        link="tunA",
        uid=7_000_033,
        image="6a8b16c4",
        root=Path("/var/lib/chainctl/images/6a8b16c4/rootfs"),
        program="/usr/bin/wireguard-go",
    )
    return render_config(
        spec,
        seccomp={"defaultAction": "SCMP_ACT_ERRNO"},
        cgroup="/chainctl-0/home.hop1.a",
        dev=Path("/run/chainctl/clients/home.hop1.a/fs/dev"),
        control=Path("/run/chainctl/clients/home.hop1.a/fs/control"),
    )


def test_the_whole_bundle_is_as_reviewed(golden: Golden) -> None:
    golden(Path(__file__).parent / "golden/config.json", config())


def test_nothing_of_the_host_can_be_written_but_the_control_directory() -> None:
    rendered = json.loads(config())
    binds = [m for m in rendered["mounts"] if m["type"] == "bind"]
    assert rendered["root"]["readonly"] is True
    assert [m["destination"] for m in binds if "ro" not in m["options"]] == ["/run/wireguard"]


def seccomp() -> dict[str, Any]:
    profile: dict[str, Any] = json.loads(data_path(PROFILE).read_text())
    return profile


def test_what_is_not_listed_is_refused() -> None:
    profile = seccomp()
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    plainly = {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }
    assert not plainly & {
        *("unshare", "setns", "clone", "clone3", "socket", "socketpair", "ioctl", "mount"),
        *("pivot_root", "chroot", "ptrace", "process_vm_writev", "bpf", "keyctl", "add_key"),
        *("userfaultfd", "perf_event_open", "io_uring_setup", "mknod", "mknodat", "setuid"),
        *("open_by_handle_at", "init_module", "finit_module", "kexec_load", "memfd_create"),
    }


def test_new_namespaces_are_masked_out_of_clone() -> None:
    flags = {
        "CLONE_NEWNS": 0x00020000,
        "CLONE_NEWCGROUP": 0x02000000,
        "CLONE_NEWUTS": 0x04000000,
        "CLONE_NEWIPC": 0x08000000,
        "CLONE_NEWUSER": 0x10000000,
        "CLONE_NEWPID": 0x20000000,
        "CLONE_NEWNET": 0x40000000,
    }
    (rule,) = [r for r in seccomp()["syscalls"] if r["names"] == ["clone"]]
    (argument,) = rule["args"]
    assert argument["op"] == "SCMP_CMP_MASKED_EQ"
    assert (argument["value"], argument["valueTwo"]) == (sum(flags.values()), 0)
