"""Parts, steps and verdicts as a person reads them. Panel, port and identity stay out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainctl.model.chain import Chain
from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    Client,
    ClientBridge,
    ClientPolicy,
    DockerNetwork,
    DockerRule,
    FarEnd,
    ForeignLink,
    Forwarding,
    KernelWireGuard,
    LanLeg,
    Leg,
    Namespace,
    NftTable,
    NsName,
    Part,
    PortFilter,
    PortName,
    PortRow,
    Route,
    Rule,
    Tun,
    TunFilter,
    TunnelConfig,
    Up,
    WireTuple,
)
from chainctl.net.guard import PUBLISHED_TABLE
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, Step


def describe_part(part: Part) -> str:
    match part:
        case Namespace(name):
            return f"network namespace {'of the filter' if name == PANEL else name}"
        case NftTable(ns, table) if table == PUBLISHED_TABLE:
            return f"published ports of {_place(ns)}"
        case NftTable(ns):
            return f"nft table in {_place(ns)}"
        case Leg(ns, link) | LanLeg(ns, link):
            return f"interface {link} of {_place(ns)}"
        case Tun(ns, link) | KernelWireGuard(ns, link):
            return f"tunnel device {link} of {_place(ns)}"
        case ForeignLink(ns, link, kind):
            return f"foreign interface {link} ({kind or 'unknown kind'}) in {_place(ns)}"
        case Address(ns, link, interface):
            return f"address {interface} on {link} of {_place(ns)}"
        case Route(ns, table, to, link):
            return f"route to {to} by {link or 'nobody'} in table {table} of {_place(ns)}"
        case Rule(ns, priority):
            return f"routing rule {priority} of {_place(ns)}"
        case Up(ns, link) if ns == PANEL:
            return f"connection {describe_side(PortName(link))} up"
        case Up(ns, link):
            return f"{link} of {_place(ns)} up"
        case PortRow(port) | FarEnd(port) | WireTuple(port):
            return f"filter entry {describe_side(port)}"
        case ClientPolicy():
            return "filter policy for clients"
        case PortFilter(port):
            return f"filter {describe_side(port)}"
        case TunFilter(ns, link):
            return f"source filter on {link} of {_place(ns)}"
        case Forwarding(link):
            return f"forwarding from {link}"
        case ClientBridge(link):
            return f"network {link} for clients on this machine"
        case DockerNetwork(name):
            return f"Docker network {name}"
        case DockerRule(link):
            return f"accept rule for {link} in DOCKER-USER"
        case Client(name) | TunnelConfig(name):
            kind = "VPN client" if isinstance(part, Client) else "configuration of VPN client"
            return f"{kind} {name}"


def describe_step(step: Step) -> str:
    match step:
        case CloseGate():
            return "shut the gate"
        case OpenGate():
            return "open the gate"
        case Prove(hop):
            return f"prove hop {hop}"
        case Make(part):
            return f"make {describe_part(part)}"
        case Change(_, part):
            return f"change {describe_part(part)}"
        case Remove(part):
            return f"remove {describe_part(part)}"


def hop_of(chain: Chain, part: Part) -> str:
    """The name of the hop a part belongs to, or of another place; "" when to none."""
    text = " ".join(str(value) for value in vars(part).values())
    for hop in chain.hops:
        places = (chain.namespace(hop), chain.in_port(hop), chain.out_port(hop))
        if any(place in text.split() for place in places):
            return hop.name
    return ""


def _place(ns: NsName) -> str:
    if ns == HOST:
        return "the host"
    return "the filter's namespace" if ns == PANEL else ns


def describe_side(port: PortName) -> str:
    """Where a packet meets the filter: `c0-h2out` is on the outer side of hop 2."""
    at = port.partition("-")[2]
    if at in _EDGES:
        return _EDGES[at]
    side = "outer" if at.endswith("out") else "inner"
    return f"on the {side} side of hop {at.strip('hinout')}"


_EDGES = {"gw": "at the gateway", "up": "at the uplink"}


def _uplink(chain: Chain) -> str:
    place = chain.uplink.place
    if place is None:
        return f"{chain.uplink.interface} by NAT"
    return f"{place.address} on {chain.uplink.interface} by {place.mode.value}"


def describe_plan(chain: Chain, before: Chain | None, steps: Sequence[Step]) -> dict[str, Any]:
    """What `chainctl plan` prints: hop by hop, what changes and what the user will notice."""
    lines: list[str] = []
    old = {hop.name: hop for hop in before.hops} if before else {}
    new = {hop.name: hop for hop in chain.hops}
    for name, hop in new.items():
        if name not in old:
            lines.append(f"+ {name:<8} {hop.tunnel.server}")
        elif old[name].tunnel != hop.tunnel or old[name].number != hop.number:
            lines.append(f"~ {name:<8} {old[name].tunnel.server} -> {hop.tunnel.server}")
    lines += [f"- {name:<8} {hop.tunnel.server}" for name, hop in old.items() if name not in new]
    untouched = [name for name in new if name in old and old[name].tunnel == new[name].tunnel]
    if untouched:
        lines.append(f"= {', '.join(untouched):<8} untouched")
    gateway = ", ".join(
        f"{lan.address} on {lan.interface} by {lan.mode.value}" for lan in chain.lans
    )
    lines.append(f"Gateway {gateway}; uplink {_uplink(chain)}; MTU {chain.mtu}.")
    lines += [f"Published {one.wish}" for one in chain.published]
    if before and before.exit.tunnel.endpoint != chain.exit.tunnel.endpoint:
        lines.append("Effect: the exit address changes, open connections end.")
    changes = [describe_step(step) for step in steps]
    lines.append(
        f"{len(changes)} steps, nothing done. Apply: chainctl up"
        if changes
        else "Nothing to do: the chain is as the file says."
    )
    return {"chain": chain.name, "lines": lines, "steps": changes, "mtu": chain.mtu}
