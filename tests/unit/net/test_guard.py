"""The nft tables as text: golden files, what holds for any chain, and nft's own opinion."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.chain import Chain, Engine, Hop
from chainctl.model.parts import HOST, PANEL, TCP, UDP, LanMode, NftTable
from chainctl.net import guard
from chainctl.net.guard import UNREACHABLE_FOR_CLIENTS
from chainctl.net.layout import layout
from tests.conftest import Golden
from tests.unit.supervisor.chains import chains, make_chain

HERE = Path(__file__).parent
_CHAIN = re.compile(r"\tchain (\w+) \{\n(.*?)\n\t\}", re.DOTALL)

CHAINS = {
    **{f"{hops}_hops": make_chain(hops) for hops in (1, 2, 3, 4)},
    "both_slots": make_chain(2, both_slots=True, number=7),
    "kernel": make_chain(2, engine=Engine.KERNEL, resolver=None, forwarded_before=True),
    "openvpn": make_chain(3, vias=(TCP, UDP, UDP)),
    "openvpn_untold": make_chain(2, vias=(UDP, TCP), told=False),
    "bridge": make_chain(1, lan_mode=LanMode.BRIDGE, lan="172.20.0.1/16", docker_user=True),
    "published": make_chain(1, guests=True, published=2),
    "own_uplink": make_chain(2, guests=True, wan_mode=LanMode.MACVLAN, both_slots=True),
}


def _tables(chain: Chain) -> Iterator[NftTable]:
    return (part for part in layout(chain) if isinstance(part, NftTable))


def _whole(table: NftTable) -> str:
    return f"table inet {table.table} {{\n{table.rules}\n}}\n"


@pytest.mark.parametrize("name", CHAINS)
def test_golden(name: str, golden: Golden) -> None:
    for table in _tables(CHAINS[name]):
        place = {HOST: "host", PANEL: "panel"}.get(table.ns, table.ns.partition(".")[2])
        if table.table in (guard.PUBLISHED_TABLE, guard.own_network_table("home")):
            place = table.table.partition("-")[2]
        golden(HERE / "golden" / name / f"{place}.nft", _whole(table))


@pytest.mark.root
@pytest.mark.parametrize("name", CHAINS)
def test_nft_takes_each_table(name: str) -> None:
    """In a network namespace of its own, which goes with the process."""
    script = "".join(
        f"{_whole(table)}delete table inet {table.table}\n" for table in _tables(CHAINS[name])
    )
    done = subprocess.run(
        ["unshare", "--net", "nft", "-c", "-f", "-"],
        input=script,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@given(chain=chains(told=None))
def test_what_drops_drops_by_policy_and_by_a_last_rule(chain: Chain) -> None:
    for table in _tables(chain):
        for name, body in _CHAIN.findall(table.rules):
            head, *rules = (line.strip() for line in body.splitlines())
            assert re.fullmatch(r"type \w+ hook \w+ priority -?\d+; policy (drop|accept);", head)
            if "policy drop" in head:
                assert rules[-1] == "drop", f"{table.key} {name}"
            else:
                assert "drop" not in rules
        if table.ns != HOST and table.table == guard.TABLE:
            for hook in ("forward", "input", "output"):
                assert re.search(
                    rf"type filter hook {hook} priority -?\d+; policy drop;", table.rules
                )


@given(chain=chains(told=None))
def test_the_gate_is_asked_before_anything_else(chain: Chain) -> None:
    gateway, *_ = (table for table in _tables(chain) if table.ns == chain.gateway)
    assert gateway.table == guard.TABLE
    bodies = dict(_CHAIN.findall(gateway.rules))
    _, *first = (line.strip() for line in bodies["forward"].splitlines()[:3])
    assert first == [
        'iifname "up0" iifname != @open drop',
        'oifname "up0" oifname != @open drop',
    ]


_EXCEPT = re.compile(r"ip daddr (& 255\.0\.0\.0 )?!= (?:\{ (.*?) \}|(\S+))")


@given(chain=chains(told=None), address=st.ip_addresses(v=4))
def test_every_way_out_refuses_what_is_not_the_internet(chain: Chain, address: IPv4Address) -> None:
    """The quick way and the exact one; the resolver has ways of its own."""
    ends = {end for network in UNREACHABLE_FOR_CLIENTS for end in (network[0], network[-1])}
    resolver = set() if chain.resolver is None else {chain.resolver}
    tables = {table.ns: table.rules for table in _tables(chain) if table.table == guard.TABLE}
    for ns in (chain.gateway, chain.namespace(chain.exit)):
        bodies = dict(_CHAIN.findall(tables[ns]))
        ways = [
            line
            for line in bodies["forward"].splitlines()
            if "ip saddr" in line and "ct " not in line and "th dport" not in line
        ]
        exact = [line for line in ways if "0.0.0.0/8" in line]
        assert bool(exact) or not _carries(chain, ns)
        for way in ways:
            if chain.resolver is not None and f"ip daddr {chain.resolver} " in way:
                continue
            assert not any(_goes(way, end) for end in ends | resolver)
            private = any(address in network for network in UNREACHABLE_FOR_CLIENTS)
            if way in exact:
                assert _goes(way, address) == (not private and address not in resolver)


def _carries(chain: Chain, ns: str) -> bool:
    return ns == chain.gateway or any(one.address is not None for one in chain.exit.tunnels)


def _goes(rule: str, address: IPv4Address) -> bool:
    """By what the rule says of destinations."""
    for by_first_byte, several, one in _EXCEPT.findall(rule):
        length = 8 if by_first_byte else 32
        for word in (several or one).split(", "):
            network = IPv4Network(word if "/" in word else f"{word}/{length}")
            if address in network:
                return False
    return True


@given(chain=chains(told=None))
def test_what_is_published_goes_between_networks_of_clients_only(chain: Chain) -> None:
    """Neither table says a word of what is published that concerns the way out."""
    rules = [guard.render_published(chain)] if chain.published else []
    rules += [line for line in guard.render_gateway(chain).splitlines() if "ct status dnat" in line]
    assert bool(rules) == bool(chain.published)
    for line in "\n".join(rules).splitlines():
        assert "up0" not in line
        links = re.findall(r'[io]ifname "(\w+)"', line)
        assert not links or "lan2" in links or "dnat ip to 172.31.7." in line
        if line.endswith("accept") and 'iifname "lan2"' in line:
            assert "ct direction reply" in line or "ct original" in line or "related" in line


@given(chain=chains(told=None))
def test_a_hop_accepts_inside_only_the_tuples_of_the_next(chain: Chain) -> None:
    """Everything a hop that is not the exit lets in at in0 names both ends and both ports."""
    for hop in chain.hops[:-1]:
        inner = chain.hops[hop.number]
        rules = guard.render_hop(chain, hop)
        inward = re.findall(r'iifname "in0" (?!oifname)(.*)', rules)
        assert len(inward) == len(inner.tunnels)
        for rule, tunnel in zip(inward, inner.tunnels, strict=True):
            source = chain.source_port(inner, tunnel.slot)
            over = "tcp" if tunnel.protocol == TCP else "udp"
            assert rule == (
                f"ip hdrlength 5 ip saddr {chain.out_leg(inner)} ip daddr {tunnel.endpoint}"
                f" {over} sport {source} {over} dport {tunnel.endpoint_port}"
                f" meta mark set {hop.active.table} accept"
            )


@given(chain=chains(told=None))
def test_a_client_sends_only_its_own_tuple(chain: Chain) -> None:
    for hop in chain.hops:
        rules = _rules_of(chain, hop)
        (body,) = (body for name, body in _CHAIN.findall(rules) if name == "output")
        lines = (line.strip() for line in body.splitlines() if 'oifname "out0"' in line)
        sent = [line for line in lines if "tcp flags" not in line]
        assert len(sent) == len(hop.tunnels)
        for rule, tunnel in zip(sent, hop.tunnels, strict=True):
            assert f"ip daddr {tunnel.endpoint} " in rule
            owned = f" meta skuid {chain.uid(hop, tunnel.slot)} "
            assert (owned in rule) == (tunnel.engine is not Engine.KERNEL)
            assert rule.endswith(" notrack accept" if hop is chain.exit else " accept")


def _rules_of(chain: Chain, hop: Hop) -> str:
    ns = chain.namespace(hop)
    return next(table.rules for table in _tables(chain) if table.ns == ns)


@given(chain=chains(told=None))
def test_only_the_exit_and_the_gateway_use_conntrack(chain: Chain) -> None:
    own = guard.own_network_table(chain.name)
    for table in _tables(chain):
        uses = bool(re.search(r"\bct\b|masquerade|dnat", table.rules))
        if table.table == own:
            assert not uses
            continue
        places = (chain.uplink_namespace, chain.gateway, chain.namespace(chain.exit))
        assert uses == (table.ns in places)


@given(chain=chains(told=None))
def test_what_does_not_know_its_address_carries_nothing(chain: Chain) -> None:
    """Neither inwards nor outwards; the client itself may talk to its server."""
    for hop in chain.hops:
        rules = _rules_of(chain, hop)
        for tunnel in hop.tunnels:
            assert (f'"{tunnel.slot.link}"' in rules) == (tunnel.address is not None)
