"""Judging rights, kernel, tools and limits. Pure; called by `chainctl.model.doctor`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from chainctl.model.facts import CgroupMode, Facts, Feature, HostFacts, Known, NetworkFacts
from chainctl.model.findings import Finding, Level, Wish, blocks, note, ok, warning

OLDEST_KERNEL = (5, 10)
"""The first with bpf_redirect_peer."""
MEMORY_PER_HOP = 160 * 2**20
"""Bytes: wireguard-go's own limit of 128 MiB, and room for its container."""


def judge_rights(host: HostFacts) -> Iterator[Finding]:
    if not host.root:
        yield blocks("rights", "C340", "chains are made by root only", "run it with sudo")
    elif host.missing_capabilities:
        yield blocks(
            "rights",
            "C341",
            f"root lacks the capabilities {', '.join(host.missing_capabilities)}",
            "start chainctl outside the container or unit that took them away",
        )
    else:
        yield ok("rights", "root, with the capabilities a chain needs")


@dataclass(frozen=True)
class _Need:
    feature: Feature
    about: str
    code: str
    lacking: str
    hint: str = ""


_KERNEL_OPTION = "load or build the kernel's {}; distribution kernels have it"

_NEEDS = (
    _Need(
        Feature.NETNS,
        "namespaces",
        "C342",
        "the kernel refuses network namespaces",
        _KERNEL_OPTION.format("CONFIG_NET_NS"),
    ),
    _Need(
        Feature.USERNS,
        "user namespaces",
        "C343",
        "the kernel refuses user namespaces, which keep a hop away from the host's links",
        "sysctl -w user.max_user_namespaces=15000",
    ),
    _Need(
        Feature.TC_BPF,
        "filter",
        "C344",
        "no eBPF classifier can be attached to a link",
        _KERNEL_OPTION.format("CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS"),
    ),
    _Need(
        Feature.REDIRECT_PEER,
        "filter helper",
        "C345",
        "the kernel has no bpf_redirect_peer, by which the filter carries packets",
    ),
    _Need(Feature.DEVMAP_HASH, "filter maps", "C346", "no eBPF map of links (DEVMAP_HASH)"),
    _Need(Feature.HASH_OF_MAPS, "filter maps", "C346", "no eBPF map of maps (HASH_OF_MAPS)"),
    _Need(Feature.RINGBUF, "filter events", "C347", "no eBPF ring buffer"),
    _Need(
        Feature.BPFFS,
        "bpffs",
        "C348",
        "no BPF file system can be mounted",
        _KERNEL_OPTION.format("CONFIG_BPF_SYSCALL"),
    ),
    _Need(Feature.VETH, "veth", "C349", "no veth pairs", _KERNEL_OPTION.format("module veth")),
    _Need(
        Feature.TUN,
        "tun",
        "C350",
        "no TUN device can be made",
        "modprobe tun; in a container pass /dev/net/tun in",
    ),
    _Need(
        Feature.LIBNFTABLES,
        "libnftables",
        "C351",
        "libnftables.so.1 is not installed",
        "apt install nftables",
    ),
    _Need(
        Feature.NFTABLES,
        "nftables",
        "C352",
        "the kernel refuses an nftables table of family inet",
        _KERNEL_OPTION.format("module nf_tables with CONFIG_NF_TABLES_INET"),
    ),
    _Need(
        Feature.MASQUERADE,
        "masquerade",
        "C353",
        "nftables cannot masquerade with random ports",
        _KERNEL_OPTION.format("modules nft_masq and nft_chain_nat"),
    ),
    _Need(
        Feature.STATELESS,
        "rewriting",
        "C354",
        "nftables cannot set conntrack zones, addresses or the TCP MSS",
        _KERNEL_OPTION.format("modules nft_ct and nf_conntrack"),
    ),
    _Need(Feature.RUNC, "runc", "C355", "runc does not run", "apt install runc"),
    _Need(Feature.LIBBPF, "libbpf", "C356", "libbpf.so.1 is not installed", "apt install libbpf1"),
)


def judge_features(host: HostFacts, network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    for need in _NEEDS:
        yield _feature(host, need)
    yield _macvlan(host, network, wish)
    if host.feature(Feature.WIREGUARD).known is Known.YES:
        yield ok("wireguard", "encrypted by the kernel's own device")
    else:
        yield ok("wireguard", "the kernel has none; wireguard-go runs in the hops instead")


def _feature(host: HostFacts, need: _Need) -> Finding:
    reading = host.feature(need.feature)
    match reading.known:
        case Known.YES:
            return ok(need.about, reading.detail or need.feature.value)
        case Known.UNKNOWN:
            return _untried(host, need.about, need.feature, reading.detail)
        case _:
            because = f": {reading.detail}" if reading.detail else ""
            return blocks(
                need.about,
                need.code,
                need.lacking + because,
                _kernel_hint(host) or need.hint,
            )


def _untried(host: HostFacts, about: str, feature: Feature, why: str) -> Finding:
    return Finding(
        about,
        Level.WARNING if host.root else Level.NOTE,
        "N330",
        f"{feature.value} could not be tried: {why}",
    )


def _kernel_hint(host: HostFacts) -> str:
    numbers = re.match(r"(\d+)\.(\d+)", host.release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= OLDEST_KERNEL:
        return ""
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return f"this is Linux {host.release}; boot {oldest} or newer"


def _macvlan(host: HostFacts, network: NetworkFacts, wish: Wish) -> Finding:
    """A LAN that is a bridge does without."""
    need = _Need(
        Feature.MACVLAN,
        "macvlan",
        "C357",
        "no macvlan, by which the gateway joins the LAN",
        "modprobe macvlan, or make the LAN interface a port of a bridge and name the bridge",
    )
    finding = _feature(host, need)
    link = network.link(wish.lan) if wish.lan else None
    bridged = link is not None and link.kind == "bridge"
    if finding.code == need.code and (bridged or wish.lan is None):
        return note(need.about, "N331", "no macvlan: the LAN has to be a bridge", finding.hint)
    return finding


def judge_limits(facts: Facts, wish: Wish) -> Iterator[Finding]:
    host = facts.host
    missing = {"memory", "pids"} - host.controllers
    if host.cgroups is CgroupMode.NONE:
        yield blocks(
            "cgroups",
            "C358",
            "no cgroup hierarchy is mounted",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )
    elif missing:
        yield warning(
            "cgroups",
            "N332",
            f"hops run without a limit on {' and '.join(sorted(missing))}",
            "add cgroup_enable=memory to the kernel's command line",
        )
    else:
        yield ok("cgroups", f"{host.cgroups.value}, limits on memory and processes")
    needed = wish.hops * MEMORY_PER_HOP
    if host.feature(Feature.WIREGUARD).known is not Known.YES and facts.memory_available < needed:
        yield warning(
            "memory",
            "N333",
            f"{_mebibytes(facts.memory_available)} are free; {wish.hops} hops under load may "
            f"use {_mebibytes(needed)}",
        )
    else:
        yield ok("memory", f"{_mebibytes(facts.memory_available)} free")


def _mebibytes(size: int) -> str:
    return f"{size // 2**20} MiB"
