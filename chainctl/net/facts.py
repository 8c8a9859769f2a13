"""Reading what this machine has: kernel, tools, network, and what is heard on the LAN.

`chainctl doctor` reads everything, `up` and `plan` what they need. Everything is read in
the network namespace of the calling thread, by netlink, because /sys/class/net shows the
namespace in which sysfs was mounted. `chainctl.model.doctor` judges what is found.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2.iwutil import IW
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nl80211 import NL80211

from chainctl.errors import MendHost
from chainctl.host import nft
from chainctl.model.facts import (
    CgroupMode,
    Facts,
    FirewallFacts,
    HostFacts,
    Known,
    LanFacts,
    NetworkFacts,
    Reading,
)
from chainctl.net.features import read_features
from chainctl.net.neighbours import find_holders, listen_for_routers
from chainctl.net.netlink import open_netlink
from chainctl.net.network_read import read_links

_OWN_TABLES = "chainctl"

_CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_ADMIN": 21,
}
"""Those a chain cannot be made without, with their bits (linux/capability.h)."""

_STATION = 2  # NL80211_IFTYPE_STATION


def read_facts(lan: str | None = None, address: IPv4Address | None = None) -> Facts:
    """Everything; with `lan`, up to 1.5 s of listening there and probing for `address`."""
    network = read_network()
    return Facts(read_host(), network, read_lan(network, lan, address), _memory_available())


def read_host() -> HostFacts:
    """What stays the same while the machine runs: about 0.15 s the first time, then nothing.

    When something is lacking it is read again the next time: it may have been mended.
    """
    facts = _read_host()
    if facts.lacks_something:
        _read_host.cache_clear()
    return facts


@functools.cache
def _read_host() -> HostFacts:
    mode, controllers = _read_cgroups()
    return HostFacts(
        release=platform.release(),
        root=os.geteuid() == 0,
        missing_capabilities=_missing_capabilities(),
        features=read_features(),
        cgroups=mode,
        controllers=controllers,
    )


def read_network(left_out: Callable[[str], bool] = lambda _: False) -> NetworkFacts:
    """Links, addresses, routes and the firewall around them: a few milliseconds.

    `left_out`: names of links that are as if they were not there.
    """
    with open_netlink() as netlink:
        links, addresses, routes = read_links(netlink, _wireless_readings, left_out)
    return NetworkFacts(
        links=links,
        addresses=addresses,
        routes=routes,
        firewall=read_firewall(),
        network_manager=_is_first_namespace() and Path("/run/NetworkManager").exists(),
    )


def read_lan(
    network: NetworkFacts, lan: str | None, address: IPv4Address | None = None
) -> LanFacts:
    """Listen on `lan` for routers and ask for holders of `address`, both at once."""
    link = network.link(lan) if lan else None
    if lan is None or link is None:
        return LanFacts(silent_because="no LAN interface was named" if lan is None else "")
    if not (link.ethernet and link.up and link.carrier):
        return LanFacts(silent_because=f"{lan} is not connected")
    # A thread begins in the network namespace of the one that starts it.
    with ThreadPoolExecutor(2, thread_name_prefix="listen") as threads:
        routers = threads.submit(listen_for_routers, lan)
        holders = threads.submit(find_holders, lan, address) if address else None
        try:
            return LanFacts(routers.result(), holders.result() if holders else None)
        except OSError as error:
            return LanFacts(silent_because=error.strerror or str(error))


# The machine ------------------------------------------------------------------------------


def _missing_capabilities() -> tuple[str, ...]:
    status = Path("/proc/thread-self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    return tuple(name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1)


def _memory_available() -> int:
    words = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()
    return int(words[0]) * 1024


def _read_cgroups() -> tuple[CgroupMode, frozenset[str]]:
    """Which hierarchies are mounted, and the controllers that can be had there."""
    old: set[str] = set()
    new: set[str] = set()
    unified = False
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup":
            old.update(options.split(","))
        elif kind == "cgroup2":
            unified = True
            new.update(_words(Path(before.split()[4]) / "cgroup.controllers"))
    match (bool(old), unified):
        case (True, True):
            mode = CgroupMode.HYBRID
        case (True, False):
            mode = CgroupMode.V1
        case (False, True):
            mode = CgroupMode.V2
        case _:
            mode = CgroupMode.NONE
    return mode, frozenset((old | new) & {"memory", "pids", "cpu"})


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _is_first_namespace() -> bool:
    """Whether this thread is in the namespace of process 1, the one daemons look after."""
    try:
        return Path("/proc/1/ns/net").stat() == Path("/proc/thread-self/ns/net").stat()
    except PermissionError:
        return False


# Wireless links ---------------------------------------------------------------------------


def _wireless_readings(names: Mapping[int, str]) -> dict[int, Reading]:
    """Which links are Wi-Fi stations, asked of nl80211, which answers per namespace.

    A kernel without it may still have a driver older than it, whose links sysfs shows; they
    cannot leave the first namespace.
    """
    stations = _stations()
    if stations is not None:
        return {index: _yes_or_no(index in stations, "nl80211") for index in names}
    if not _is_first_namespace():
        return dict.fromkeys(names, _yes_or_no(False, "no nl80211"))
    return {
        index: _yes_or_no(Path(f"/sys/class/net/{name}/wireless").exists(), "sysfs")
        for index, name in names.items()
    }


def _yes_or_no(yes: bool, source: str) -> Reading:
    return Reading(Known.YES if yes else Known.NO, source)


def _stations() -> frozenset[int] | None:
    """Indexes of the links in station mode; None in a kernel that has no nl80211."""
    with closing(NL80211()) as family:
        try:
            family.bind()
        except NetlinkError:
            return None
    with closing(IW()) as wireless:
        return frozenset(
            message.get_attr("NL80211_ATTR_IFINDEX")
            for message in wireless.list_dev()
            if message.get_attr("NL80211_ATTR_IFTYPE") == _STATION
        )


# Firewall ---------------------------------------------------------------------------------


def read_firewall() -> FirewallFacts:
    """What else on this host decides about forwarded packets."""
    try:
        entries = nft.read_json("list chains")["nftables"]
    except MendHost:
        return FirewallFacts(readable=False, legacy_iptables=_has_legacy_iptables())
    chains = [entry["chain"] for entry in entries if "chain" in entry]
    foreign = [chain for chain in chains if not chain["table"].startswith(_OWN_TABLES)]
    return FirewallFacts(
        forward_drops=tuple(
            f"{chain['family']} {chain['table']} {chain['name']}"
            for chain in foreign
            if chain.get("hook") == "forward"
            and chain.get("policy") == "drop"
            and chain["family"] in ("ip", "inet")
        ),
        docker_user=any(
            (chain["family"], chain["table"], chain["name"]) == ("ip", "filter", "DOCKER-USER")
            for chain in foreign
        ),
        firewalld=any(chain["table"] == "firewalld" for chain in foreign),
        legacy_iptables=_has_legacy_iptables(),
        bridge_calls_iptables=_words(Path("/proc/sys/net/bridge/bridge-nf-call-iptables")) == ["1"],
    )


def _has_legacy_iptables() -> bool:
    # /proc/net is the namespace of the process's first thread.
    return "filter" in _words(Path("/proc/thread-self/net/ip_tables_names"))
