"""What is read of the machine is what is there: in namespaces made for it, with real frames."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result

from chainctl.cli.main import main
from chainctl.host import nft
from chainctl.model.doctor import assess
from chainctl.model.facts import Feature, Known, LinkFacts, NetworkFacts, RouteFacts
from chainctl.model.findings import Level, Wish
from chainctl.net import facts, features
from chainctl.net.features import read_features
from chainctl.net.neighbours import find_holders, listen_for_routers
from tests.unit.net.test_neighbours import ADVERTISEMENT

pytestmark = pytest.mark.root

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_ETH_IPV6 = 0x86DD
_DEADLINE = 10.0


@dataclass(frozen=True)
class Space:
    """A network namespace for one test."""

    name: str

    def run(self, fn: Callable[[], T]) -> T:
        with self.start(fn) as future:
            return future.result()

    @contextlib.contextmanager
    def start(self, fn: Callable[[], T]) -> Iterator[Future[T]]:
        """Run `fn` on a thread that has entered the namespace; joined at the end."""
        with ThreadPoolExecutor(1) as thread:
            yield thread.submit(self._enter_and, fn)

    def _enter_and(self, fn: Callable[[], T]) -> T:
        with Path(f"/run/netns/{self.name}").open() as handle:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(handle.fileno(), _CLONE_NEWNET) == 0, ctypes.get_errno()
        return fn()

    def ip(self, command: str) -> str:
        return _ip(f"-n {self.name} {command}")

    def set(self, key: str, value: str) -> None:
        self.run(lambda: Path(f"/proc/sys/net/{key}").write_text(value))

    def get(self, path: str) -> str:
        return self.run(lambda: Path(path).read_text())


def _ip(command: str) -> str:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def _space(role: str) -> Iterator[Space]:
    name = f"d-facts-{os.getpid()}-{role}"
    _ip(f"netns add {name}")
    try:
        yield Space(name)
    finally:
        _ip(f"netns del {name}")


@pytest.fixture
def here() -> Iterator[Space]:
    with _space("here") as space:
        space.ip("link set lo up")
        yield space


@pytest.fixture
def there(here: Space) -> Iterator[Space]:
    """The other end of the LAN: link `lan` on both sides, both up."""
    with _space("there") as space:
        here.ip(f"link add lan type veth peer name lan netns {space.name}")
        here.ip("link set lan up")
        space.ip("link set lan address 02:00:00:00:00:77")
        space.ip("link set lan up")
        yield space


def _until(seen: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not seen():
        assert time.monotonic() < deadline, f"not seen: {what}"
        threading.Event().wait(0.01)


def _link(network: NetworkFacts, name: str) -> LinkFacts:
    link = network.link(name)
    assert link is not None
    return link


# Features ---------------------------------------------------------------------------------


def test_this_machine_has_what_the_other_tests_need() -> None:
    readings = read_features()
    missing = {
        feature: reading
        for feature, reading in readings.items()
        if reading.known is not Known.YES and feature is not Feature.WIREGUARD
    }
    assert set(readings) == set(Feature)
    assert missing == {}


def _traces() -> tuple[object, ...]:
    return (
        _ip("-o link").count("\n"),
        str(nft.read_json("list tables")),
        Path("/proc/thread-self/ns/net").stat().st_ino,
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        threading.active_count(),
    )


def _leave_shared_mounts() -> None:
    """Enter a mount namespace of this thread's own, which no other process adds mounts to."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(_CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0


def _mounts() -> set[str]:
    return set(Path("/proc/thread-self/mountinfo").read_text().splitlines())


def test_trying_leaves_nothing(here: Space) -> None:
    def watch() -> tuple[tuple[object, ...], tuple[object, ...], set[str]]:
        _leave_shared_mounts()
        read_features()  # loads libraries, which keep a descriptor or two
        before, mounts = _traces(), _mounts()
        for _ in range(3):
            read_features()
        return before, _traces(), _mounts() - mounts

    before, after, mounted = here.run(watch)
    assert after == before
    assert mounted == set()


@pytest.mark.parametrize(
    "probe",
    [
        lambda: str(features._load(bytes.fromhex("85000000ffff0000 9500000000000000"))),
        lambda: features._create_map(0xFFFF, 4, 4, 1),
        lambda: features._apply_nft("nosuchword"),
        lambda: features._open_library("libnosuchthing.so.1"),
    ],
    ids=["helper", "map", "nftables", "library"],
)
def test_a_refused_feature_is_a_no_and_not_a_crash(here: Space, probe: Callable[[], str]) -> None:
    reading = here.run(lambda: features._reading(probe))
    assert reading.known is Known.NO
    assert reading.detail
    assert "\n" not in reading.detail


def test_what_only_root_can_try_stays_unknown_to_others() -> None:
    script = (
        "import os, json\n"
        "from chainctl.net.facts import read_host\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "host = read_host()\n"
        "print(json.dumps([host.root, {f.value: r.known.value for f, r in host.features.items()}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    root, known = json.loads(done.stdout)
    assert root is False
    tools = {Feature.LIBBPF.value, Feature.LIBNFTABLES.value, Feature.RUNC.value}
    assert {known[feature] for feature in set(known) - tools - {"user-namespaces"}} == {"unknown"}
    assert {known[tool] for tool in tools} == {"yes"}


def test_a_tool_that_was_installed_meanwhile_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    facts._read_host.cache_clear()
    with monkeypatch.context() as without:
        without.setenv("PATH", "/nowhere")
        reading = facts.read_host().feature(Feature.RUNC)
        assert reading.known is Known.NO
        assert "not installed" in reading.detail
    assert facts.read_host().feature(Feature.RUNC).known is Known.YES
    assert facts.read_host() is facts.read_host()


# Network ----------------------------------------------------------------------------------


def test_links_are_those_of_the_threads_namespace(here: Space, there: Space) -> None:
    here.ip("link add name br type bridge")
    here.ip("link set lan master br")
    here.ip("link add quiet type veth peer name quiet2")
    here.set("ipv4/conf/br/forwarding", "1")
    here.set("ipv4/conf/all/rp_filter", "1")
    network = here.run(facts.read_network)
    assert {link.name for link in network.links} >= {"lo", "br", "lan", "quiet", "quiet2"}
    assert "eth0" not in {link.name for link in network.links}
    lan, br, quiet = (_link(network, name) for name in ("lan", "br", "quiet"))
    assert (lan.kind, lan.master, lan.up, lan.carrier) == ("veth", "br", True, True)
    assert (br.kind, br.master, br.forwarding) == ("bridge", None, True)
    assert (quiet.up, quiet.carrier, quiet.forwarding) == (False, False, False)
    assert lan.rp_filter == 1
    assert lan.mac in here.ip("link show lan")
    assert (lan.ethernet, _link(network, "lo").ethernet) == (True, False)
    assert not network.network_manager


def test_addresses_and_routes(here: Space, there: Space) -> None:
    here.ip("addr add 192.168.10.2/24 dev lan")
    here.ip("route add default via 192.168.10.1 metric 50")
    here.ip("route add default via 192.168.10.3 metric 7")
    here.ip("route add blackhole 198.18.0.0/15")
    here.ip("route add 10.9.0.0/16 dev lan table 77")
    here.ip("-6 route add unreachable 2001:db8:f::/48")
    network = here.run(facts.read_network)
    assert ("lan", ip_interface("192.168.10.2/24")) in [
        (address.link, address.interface) for address in network.addresses
    ]
    expected = [
        RouteFacts(ip_network("0.0.0.0/0"), "lan", IPv4Address("192.168.10.1"), metric=50),
        RouteFacts(ip_network("0.0.0.0/0"), "lan", IPv4Address("192.168.10.3"), metric=7),
        RouteFacts(ip_network("198.18.0.0/15"), None),
        RouteFacts(ip_network("192.168.10.0/24"), "lan"),
        RouteFacts(ip_network("10.9.0.0/16"), "lan", table=77),
    ]
    assert {route for route in network.routes if route.to.version == 4} == set(expected)
    assert network.default_route == expected[1]
    assert ip_network("2001:db8:f::/48") in {
        route.to for route in network.routes if route.link is None
    }


def test_links_may_be_left_out_with_all_that_belongs_to_them(here: Space) -> None:
    here.ip("link add chain7 type veth peer name other")
    for link in ("chain7", "other"):
        here.ip(f"link set {link} up")
    here.ip("addr add 198.19.0.30/32 dev chain7")
    here.ip("addr add 10.1.0.1/24 dev other")
    here.ip("route add 198.19.0.3/32 dev chain7")
    here.ip("route add 10.7.0.0/16 nexthop dev other nexthop via 10.1.0.7")
    here.ip("route add unreachable 10.6.0.0/16")
    network = here.run(lambda: facts.read_network(lambda name: name == "chain7"))
    assert "other" in {link.name for link in network.links}
    assert "chain7" not in {link.name for link in network.links}
    assert {address.link for address in network.addresses} == {"lo", "other"}
    routes = {str(route.to): route.link for route in network.routes if route.to.version == 4}
    assert routes == {"10.1.0.0/24": "other", "10.7.0.0/16": "other", "10.6.0.0/16": None}


DOCKER = """
table ip filter {
    chain DOCKER-USER { return; }
    chain FORWARD {
        type filter hook forward priority 0; policy drop;
        jump DOCKER-USER
    }
}
"""
OTHERS = """
table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority 10; policy accept; }
}
table inet mine {
    chain forwarded { type filter hook forward priority 5; policy drop; }
}
table inet chainctl-home {
    chain forward { type filter hook forward priority 0; policy drop; }
}
table ip6 six {
    chain forward { type filter hook forward priority 0; policy drop; }
}
"""


def test_an_empty_firewall(here: Space) -> None:
    firewall = here.run(facts.read_firewall)
    assert (firewall.readable, firewall.forward_drops, firewall.docker_user) == (True, (), False)
    assert not firewall.firewalld
    assert not firewall.legacy_iptables


def test_dockers_drop_is_seen(here: Space) -> None:
    here.run(lambda: nft.apply(DOCKER))
    firewall = here.run(facts.read_firewall)
    assert firewall.forward_drops == ("ip filter FORWARD",)
    assert firewall.docker_user


def test_other_firewalls_are_seen_and_our_own_is_not(here: Space) -> None:
    here.run(lambda: nft.apply(OTHERS))
    firewall = here.run(facts.read_firewall)
    assert firewall.forward_drops == ("inet mine forwarded",)
    assert firewall.firewalld
    assert not firewall.docker_user


# LAN --------------------------------------------------------------------------------------


def _answer_solicitation(frame: bytes) -> Callable[[], bytes]:
    """Wait for a router solicitation, then send `frame`; returns what was heard."""

    def answer() -> bytes:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_IPV6)) as sock:
            sock.bind(("lan", _ETH_IPV6))
            sock.settimeout(_DEADLINE)
            while True:
                heard = sock.recv(2048)
                if heard[54:55] == b"\x85":
                    sock.send(frame)
                    return heard

    return answer


@pytest.mark.parametrize("ipv6_off", [False, True], ids=["IPv6 on", "IPv6 off"])
def test_a_router_is_heard(here: Space, there: Space, ipv6_off: bool) -> None:
    here.set("ipv6/conf/lan/disable_ipv6", str(int(ipv6_off)))
    with there.start(_answer_solicitation(ADVERTISEMENT)) as answered:
        begun = time.monotonic()
        (router,) = here.run(lambda: listen_for_routers("lan"))
        assert time.monotonic() - begun < 1.5
        assert answered.result()[:6].hex() == "333300000002"
    assert router.address == IPv6Address("fe80::1")
    assert router.lifetime == 1800


def test_the_card_is_told_to_take_advertisements(here: Space, there: Space) -> None:
    """With IPv6 off a card may filter them out; a veth does not, so its list is looked at."""
    here.set("ipv6/conf/lan/disable_ipv6", "1")

    def takers() -> int:
        entry = re.search(r"33:33:00:00:00:01(?: users (\d+))?", here.ip("maddr show dev lan"))
        return 0 if entry is None else int(entry[1] or 1)

    before = takers()
    with here.start(lambda: listen_for_routers("lan")) as listening:
        _until(lambda: takers() == before + 1, "one who takes the multicast address more")
        listening.result()


def test_without_a_router_the_listening_ends(here: Space, there: Space) -> None:
    begun = time.monotonic()
    assert here.run(lambda: listen_for_routers("lan", 0.3)) == ()
    assert 0.3 <= time.monotonic() - begun < 1.0


def test_an_advertisement_of_a_vlan_is_not_ours(here: Space, there: Space) -> None:
    tagged = ADVERTISEMENT[:12] + bytes.fromhex("81000014") + ADVERTISEMENT[12:]
    with there.start(_answer_solicitation(tagged)) as answered:
        assert here.run(lambda: listen_for_routers("lan", 0.5)) == ()
        answered.result()


def test_a_kernel_takes_the_solicitation_for_a_valid_one(here: Space, there: Space) -> None:
    there.set("ipv6/conf/all/forwarding", "1")
    here.set("ipv6/conf/lan/disable_ipv6", "1")  # else the kernel of this side solicits too
    _until(lambda: "fe80" in there.ip("-6 addr show dev lan -tentative"), "an address over there")

    def counted(name: str) -> int:
        return int(there.get("/proc/thread-self/net/snmp6").split(name)[1].split()[0])

    before = counted("Icmp6InRouterSolicits"), counted("Icmp6InErrors")
    here.run(lambda: listen_for_routers("lan", 0.2))
    assert counted("Icmp6InRouterSolicits") == before[0] + 2
    assert counted("Icmp6InErrors") == before[1]


def test_a_route_from_an_advertisement_is_seen(here: Space, there: Space) -> None:
    here.set("ipv6/conf/lan/accept_ra", "1")
    _until(lambda: "fe80" in here.ip("-6 addr show dev lan -tentative"), "an address here")

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("lan", _ETH_IPV6))
            sock.send(ADVERTISEMENT)

    there.run(send)
    _until(lambda: "default" in here.ip("-6 route"), "the default route")
    network = here.run(facts.read_network)
    (default,) = [route for route in network.routes if route.from_advertisement and route.default]
    assert (default.link, default.gateway) == ("lan", IPv6Address("fe80::1"))


def test_a_duplicate_address_is_found_and_no_neighbour_learns_ours(
    here: Space, there: Space
) -> None:
    there.ip("addr add 192.168.10.254/24 dev lan")
    holders = here.run(lambda: find_holders("lan", IPv4Address("192.168.10.254")))
    assert holders == ("02:00:00:00:00:77",)
    assert there.ip("neigh show dev lan nud all").count("192.168.10") == 0


def test_a_free_address_is_free(here: Space, there: Space) -> None:
    here.ip("addr add 192.168.10.254/24 dev lan")
    assert here.run(lambda: find_holders("lan", IPv4Address("192.168.10.254"), 0.3)) == ()


def test_nobody_listens_on_a_lan_that_is_not_connected(here: Space, there: Space) -> None:
    there.ip("link set lan down")
    _until(lambda: "NO-CARRIER" in here.ip("link show lan"), "the lost carrier")
    heard = here.run(lambda: facts.read_lan(facts.read_network(), "lan", IPv4Address("1.2.3.4")))
    assert (heard.routers, heard.holders) == (None, None)
    assert heard.silent_because == "lan is not connected"


# The command ------------------------------------------------------------------------------


def _doctor(space: Space, *arguments: str) -> Result:
    return space.run(lambda: CliRunner().invoke(main, ["doctor", *arguments]))


def test_the_command_finds_everything_at_once(here: Space, there: Space) -> None:
    here.ip("addr add 192.168.10.2/24 dev lan")
    there.ip("addr add 192.168.10.254/24 dev lan")
    here.run(lambda: nft.apply(DOCKER))
    with there.start(_answer_solicitation(ADVERTISEMENT)) as answered:
        options = ("--lan", "lan", "--address", "192.168.10.254/24", "--json")
        result = _doctor(here, *options)
        answered.result()
    report = json.loads(result.stdout)
    assert result.exit_code == report["exit_status"] == 3
    codes = {finding["code"] for finding in report["findings"]}
    assert codes == {"", "C330", "N341", "N351", "C366"}
    taken = next(finding for finding in report["findings"] if finding["code"] == "C366")
    assert "02:00:00:00:00:77" in taken["text"]
    assert set(taken) == {"about", "level", "code", "text", "hint"}


def test_the_command_is_content_with_a_good_host(here: Space, there: Space) -> None:
    here.ip("addr add 203.0.113.9/24 dev lan")
    here.ip("route add default via 203.0.113.1")
    result = _doctor(here)
    assert result.exit_code == 0, result.stdout
    assert result.stdout.endswith("checks passed and nothing else.\n")
    assert "uplink lan" in _doctor(here, "--all").stdout


def test_a_missing_lan_is_named_with_those_there_are(here: Space, there: Space) -> None:
    result = _doctor(here, "--lan", "lam")
    assert result.exit_code == 3
    assert "[C333] there is no interface lam" in result.stdout
    assert "interfaces here: lo, lan" in result.stdout


PROFILE = """
[Interface]
PrivateKey = AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
Address = 192.168.10.7/32
DNS = 10.64.0.1
[Peer]
PublicKey = ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=
AllowedIPs = 0.0.0.0/0
Endpoint = 198.51.100.7:51820
"""
CHAIN = """
chain: home
lan: {interface: lan, address: 192.168.10.254/24}
wan: {interface: wan0}
hops:
  - {name: guard, servers: guard.conf}
"""


def test_a_chain_file_says_what_to_look_at(here: Space, there: Space, tmp_path: Path) -> None:
    (tmp_path / "guard.conf").write_text(PROFILE)
    chain_file = tmp_path / "chain.yaml"
    chain_file.write_text(CHAIN)
    here.ip("link set lan down")
    result = _doctor(here, str(chain_file), "--json")
    report = json.loads(result.stdout)
    codes = {finding["code"] for finding in report["findings"] if finding["level"] == "blocks"}
    assert codes == {"C331", "C363"}
    chain_file.write_text(CHAIN.replace("hops", "hosp"))
    assert _doctor(here, str(chain_file)).exit_code == 2


def test_the_same_judgement_as_for_data(here: Space, there: Space) -> None:
    here.ip("link set lan down")
    read = here.run(lambda: facts.read_facts("lan"))
    findings = assess(read, Wish(lan="lan"))
    assert "N348" in {finding.code for finding in findings if finding.level is Level.WARNING}
