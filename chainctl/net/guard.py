"""The second layer: what each namespace's own nft table lets through, as text.

`layout` puts the text into NftTable parts. The tables hold without the identity filter, and
it without them. Each base chain drops by policy *and* by an explicit last rule, because a
policy alone let packets through while a table was replaced (35-135 of 200 replacements under
a flood, measured). Nothing here uses conntrack but the gateway and the exit hop: where one
known flow passes, its addresses are rewritten statelessly.

Every packet meets them, so the commonest packet of a chain is matched first, by one rule with all
conditions, and nothing is compared twice; what is left falls to the last rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from chainctl.model.chain import Chain, Engine, Hop, Slot, Tunnel
from chainctl.model.parts import TCP

TABLE = "chainctl"
PUBLISHED_TABLE = f"{TABLE}-published"
"""Beside the gateway's own, so that a container with another address touches no gate."""
GATE_SET = "open"

UNREACHABLE_FOR_CLIENTS = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/3",
    )
)
"""Not the internet: RFC 6890 special-purpose ranges, multicast, class E and broadcast."""

_PLAIN = "ip hdrlength 5"
"""No client's packet and none of a tunnel has IP options; record route would ask us to write in
our addresses."""
_FROM_INSIDE, _FROM_TUNNEL = 1, 2
"""Marks in the exit, for what has not got the mark of a slot: which kind of link it came from. To
compare a number is much cheaper than a link's name, which is copied for each comparison.
"""
_LATER_FRAGMENT = "ip frag-off & 0x1fff != 0"
_PROBE_ANSWERS = "icmp type { echo-reply, destination-unreachable, time-exceeded }"


def render_hop(chain: Chain, hop: Hop) -> str:
    """A hop that is not the exit: one inner flow per tunnel of the next hop, rewritten."""
    inner = chain.hops[hop.number]
    leg = chain.out_leg(inner)
    mark = hop.active.table
    arrivals: list[str] = []
    rare: list[str] = []
    forward, postrouting = [], []
    for flow in inner.tunnels:
        there = _flow(flow, leg, chain.source_port(inner, flow.slot))
        arrivals.append(f'iifname "in0" {_PLAIN} {there} meta mark set {mark} accept')
    for tunnel, own in _addressed(hop):
        link = tunnel.slot.link
        for flow in inner.tunnels:
            port = chain.source_port(inner, flow.slot)
            back = _answer(flow, own, port)
            late = (
                f"ip saddr {flow.endpoint} ip daddr {own}"
                f" ip protocol {_protocol(flow)} {_LATER_FRAGMENT}"
            )
            for rules, match in ((arrivals, back), (rare, late)):
                rules.append(f'iifname "{link}" {_PLAIN} {match} ip daddr set {leg} accept')
            there = _flow(flow, leg, port)
            forward += [
                f'iifname "in0" oifname "{link}" {there} accept',
                f'iifname "{link}" oifname "in0" ip saddr {flow.endpoint} ip daddr {leg}'
                f" ip protocol {_protocol(flow)} accept",
            ]
        rare.append(f'iifname "{link}" {_PLAIN} ip daddr {own} {_PROBE_ANSWERS} accept')
        postrouting.append(f'oifname "{link}" ip saddr {leg} ip saddr set {own}')
    prerouting = [*arrivals, *_outer_arrivals(chain, hop), *rare]
    return _table(
        # Before defragmentation, which would be switched on by conntrack elsewhere.
        _chain("prerouting", "filter", "prerouting", -450, prerouting),
        _chain("forward", "filter", "forward", 0, forward),
        _chain("input", "filter", "input", 0, _hop_input(chain, hop)),
        _chain("output", "filter", "output", 0, _hop_output(chain, hop)),
        _chain("postrouting", "filter", "postrouting", 300, postrouting, ends="accept"),
    )


def render_exit(chain: Chain) -> str:
    """The exit hop: clients' flows, masqueraded, each over the tunnel it began with.

    A flow is remembered with the slot that was active then (ct mark), which chooses its routing
    table from then on. Both tunnels may have the same client address, so replies are looked up
    in a conntrack zone of their slot, while what clients send has one zone for all.
    """
    hop = chain.exit
    clients = _any_of(chain.clients)
    zone = hop.active.table
    # What comes from outside comes packet by packet, clients' TCP in large segments.
    prerouting = [f"{rule} {_PLAIN} notrack accept" for rule in _outer_matches(chain, hop)]
    remember = [
        # What began earlier has its mark and is done with the first of the two.
        f"meta mark {_FROM_INSIDE} ct mark != 0 meta mark set ct mark accept",
        f"meta mark {_FROM_INSIDE} ct state new ct mark set {zone} meta mark set {zone}",
    ]
    forward = [
        _CLAMP,
        f'meta mark {_FROM_TUNNEL} oifname "in0" {_within("daddr", chain.clients)}'
        " ct state established,related accept",
    ]
    masquerade = []
    for tunnel, own in _addressed(hop):
        link, table = tunnel.slot.link, tunnel.slot.table
        prerouting.append(
            f'iifname "{link}" {_PLAIN} ip daddr {own}'
            f" ct zone set {table} meta mark set {_FROM_TUNNEL} accept"
        )
        # Only what came from inside has the mark of a slot.
        forward += _outward(
            chain, f'meta mark {table} oifname "{link}" {_within("saddr", chain.clients)}'
        )
        masquerade.append(f'oifname "{link}" ip saddr {clients} masquerade random,fully-random')
    prerouting.append(
        f'iifname "in0" {_PLAIN} {_within("saddr", chain.clients)}'
        f" ct reply zone set {zone} meta mark set {_FROM_INSIDE} accept"
    )
    return _table(
        _chain("prerouting", "filter", "prerouting", -300, prerouting),
        _chain("slots", "filter", "prerouting", -150, remember, ends="accept"),
        _chain("forward", "filter", "forward", 0, forward),
        _chain("input", "filter", "input", 0, _hop_input(chain, hop)),
        # Before conntrack, which is not to know what servers are sent.
        _chain("output", "filter", "output", -300, _hop_output(chain, hop)),
        _chain("nat", "nat", "postrouting", 100, masquerade, ends="accept"),
    )


def render_gateway(chain: Chain) -> str:
    """The gateway: the gate first, then clients out and what they asked for back."""
    gate = f"set {GATE_SET} {{\n\t\ttype ifname\n\t\tflags timeout\n\t}}"
    dns, inward, outward = [], [], []
    # What comes from outside comes packet by packet, clients' TCP in large segments.
    prerouting = [
        f'iifname "up0" {_PLAIN} {_within("daddr", [lan.address.network])} accept'
        for lan in chain.lans
    ]
    forward = [
        # Asked before conntrack: an "established accept" ahead of it never closes.
        f'iifname "up0" iifname != @{GATE_SET} drop',
        f'oifname "up0" oifname != @{GATE_SET} drop',
        *_published_through(chain),
        _CLAMP,
        *(
            f'iifname "up0" oifname "{lan.link}" {_within("daddr", [lan.address.network])}'
            " ct state established,related accept"
            for lan in chain.lans
        ),
    ]
    for lan in chain.lans:
        link, address, clients = lan.link, lan.address.ip, lan.address.network
        from_lan = f'iifname "{link}" ip saddr {clients}'
        prerouting.append(
            f'iifname "{link}" pkttype host {_PLAIN} {_within("saddr", [clients])}'
            f" ip saddr != {address} {_not_inside(chain, address)} accept"
        )
        forward += _outward(chain, f'iifname "{link}" oifname "up0" {_within("saddr", [clients])}')
        if chain.resolver is not None:
            dns += [
                f"{from_lan} ip daddr {address} {protocol} dport 53 dnat ip to {chain.resolver}"
                for protocol in ("udp", "tcp")
            ]
        inward.append(f"{from_lan} ip daddr {address} icmp type echo-request accept")
        outward.append(
            f'oifname "{link}" ip saddr {address} ip daddr {clients}'
            " icmp type { echo-reply, destination-unreachable, time-exceeded } accept"
        )
    return _table(
        gate,
        _chain("prerouting", "filter", "prerouting", -300, prerouting),
        _chain("dns", "nat", "prerouting", -100, dns, ends="accept"),
        _chain("forward", "filter", "forward", 0, forward),
        _chain("input", "filter", "input", 0, inward),
        _chain("output", "filter", "output", 0, outward),
    )


def _published_through(chain: Chain) -> Iterator[str]:
    """From devices to what is published, and back. Which that is, the other table says.

    What a container opens by itself is no answer, whomever it is for.
    """
    own = chain.own_network
    if own is None or not chain.published:
        return
    containers = own.address.network
    for lan in chain.devices:
        devices = lan.address.network
        yield (
            f'iifname "{lan.link}" oifname "{own.link}" ip saddr {devices} ip daddr {containers}'
            f" ct status dnat ct original ip daddr {lan.address.ip} accept"
        )
        yield (
            f'iifname "{own.link}" oifname "{lan.link}" ip saddr {containers} ip daddr {devices}'
            f" ct status dnat ct direction reply ct original ip daddr {lan.address.ip} accept"
        )


def render_published(chain: Chain) -> str:
    """Which port of the gateway leads to which container. Nothing here lets anything out: what
    the gateway's own table forbids stays forbidden.
    """
    own = chain.own_network
    assert own is not None, "the chain file was refused without"
    lead, through = [], []
    for lan in chain.devices:
        gateway, devices = lan.address.ip, lan.address.network
        there = f'iifname "{lan.link}" oifname "{own.link}"'
        back = f'iifname "{own.link}" oifname "{lan.link}"'
        for one in chain.published:
            if one.to is None or gateway not in one.at:
                continue
            wish = one.wish
            protocol, port = "tcp" if wish.protocol == TCP else "udp", wish.client_port
            lead.append(
                f'iifname "{lan.link}" ip saddr {devices} ip daddr {gateway}'
                f" {protocol} dport {wish.port} dnat ip to {one.to}:{port}"
            )
            begun = f"ct original ip daddr {gateway} ct original proto-dst {wish.port}"
            through += [
                f"{there} ip daddr {one.to} {protocol} dport {port} {begun} accept",
                f"{back} ip saddr {one.to} {protocol} sport {port} {begun} accept",
            ]
        # Connections that began before a port led elsewhere end, also when nobody says goodbye.
        errors = "icmp type destination-unreachable ct state related accept"
        for way in (there, back):
            through += [f"{way} {errors}", f"{way} drop"]
    return _table(
        _chain("ports", "nat", "prerouting", -100, lead, ends="accept"),
        _chain("through", "filter", "forward", -10, through, ends="accept"),
    )


def render_host(chain: Chain) -> str:
    """The host's part of the uplink: hop 1's tuples out, their answers back, NAT.

    Everything that does not touch our leg is left to the host's own rules, except that an
    interface that did not forward before we made it forward keeps forwarding nothing else.
    """
    guard = chain.hops[0]
    leg = chain.out_leg(guard)
    ours, wan = chain.host_link, chain.uplink.interface
    # The name of a link is copied each time it is asked for, and what servers send comes by here.
    raw = [f'iifname != "{ours}" accept']
    forward = [*_first_hop_through(chain, ours)]
    for tunnel in guard.tunnels:
        there = _flow(tunnel, leg, chain.source_port(guard, tunnel.slot))
        raw.append(f"{there} accept")
    raw.append(f'iifname "{ours}" drop')
    forward += [f'iifname "{ours}" drop', f'oifname "{ours}" drop']
    if not chain.uplink.forwarded_before:
        # Other chains of this machine have tables of their own for their links.
        forward.append(f'iifname "{wan}" oifname != "chain*" drop')
    return _table(
        _chain("prerouting", "filter", "prerouting", -300, raw, ends="accept"),
        _chain("forward", "filter", "forward", -10, forward, ends="accept"),
        _chain("input", "filter", "input", -10, [f'iifname "{ours}" drop'], ends="accept"),
        _chain("output", "filter", "output", -10, [f'oifname "{ours}" drop'], ends="accept"),
        _first_hop_translated(chain),
    )


def render_uplink(chain: Chain) -> str:
    """The uplink where it has a namespace of its own: hop 1's tuples out, their answers back."""
    guard = chain.hops[0]
    leg, wan = chain.out_leg(guard), chain.wan_link
    place = chain.uplink.place
    assert place is not None
    prerouting = []
    for tunnel in guard.tunnels:
        there = _flow(tunnel, leg, chain.source_port(guard, tunnel.slot))
        prerouting += [
            f'iifname "in0" {there} accept',
            f'iifname "{wan}" ip saddr {tunnel.endpoint} ip daddr {place.address.ip}'
            f" ip protocol {_protocol(tunnel)} accept",
        ]
    return _table(
        _chain("prerouting", "filter", "prerouting", -300, prerouting),
        _chain("forward", "filter", "forward", 0, _first_hop_through(chain, "in0")),
        _chain("input", "filter", "input", 0, []),
        _chain("output", "filter", "output", 0, []),
        _first_hop_translated(chain),
    )


def _first_hop_through(chain: Chain, ours: str) -> Iterable[str]:
    """Hop 1's tuples from the link `ours` to the network outside, and their answers."""
    guard, wan = chain.hops[0], chain.wan_link
    leg = chain.out_leg(guard)
    for tunnel in guard.tunnels:
        there = _flow(tunnel, leg, chain.source_port(guard, tunnel.slot))
        yield f'iifname "{ours}" oifname "{wan}" {there} accept'
        yield (
            f'iifname "{wan}" oifname "{ours}" ip saddr {tunnel.endpoint} ip daddr {leg}'
            " ct state established accept"
        )


def _first_hop_translated(chain: Chain) -> str:
    leg, wan = chain.out_leg(chain.hops[0]), chain.wan_link
    rules = [f'ip saddr {leg} oifname "{wan}" masquerade']
    return _chain("nat", "nat", "postrouting", 100, rules, ends="accept")


def own_network_table(chain: str) -> str:
    """No chain has an underscore in its name, so none has such a table for itself."""
    return f"{TABLE}-{chain}_lan"


def chain_of_own_network(table: str) -> str | None:
    found = re.fullmatch(rf"{TABLE}-(.+)_lan", table)
    return found[1] if found else None


def render_own_network(bridge: str) -> str:
    """The host itself is nobody on the bridge: it neither answers there nor forwards.

    Frames from one port of the bridge to another come by the forward hook as well where
    br_netfilter is loaded, and are none of its business.
    """
    return _table(
        _chain(
            "forward",
            "filter",
            "forward",
            -10,
            [
                f'iifname "{bridge}" oifname != "{bridge}" drop',
                f'oifname "{bridge}" iifname != "{bridge}" drop',
            ],
            ends="accept",
        ),
        _chain("input", "filter", "input", -10, [f'iifname "{bridge}" drop'], ends="accept"),
        _chain("output", "filter", "output", -10, [f'oifname "{bridge}" drop'], ends="accept"),
    )


def uplink_made_to_forward(host_table: str) -> str:
    """The interface that forwards only since we came, told by the host's table; "": none does."""
    rule = re.search(r'iifname "([^"]+)" oifname != "chain\*" drop', host_table)
    return rule[1] if rule else ""


def render_panel() -> str:
    """The panel's own stack never sees a packet that is meant for it; if it does, it ends here."""
    return _table(
        *(
            _chain(hook, "filter", hook, 0, [])
            for hook in ("prerouting", "input", "forward", "output", "postrouting")
        )
    )


def _any_of(networks: Sequence[IPv4Network | IPv4Address]) -> str:
    """As nft prints it: one alone, several as a set."""
    words = ", ".join(str(network) for network in networks)
    return words if len(networks) == 1 else f"{{ {words} }}"


def _within(end: str, networks: Sequence[IPv4Network]) -> str:
    """`end`: saddr or daddr. Of a /24 nft would load three bytes, and what is not one, two or four
    the kernel loads the slow way (nft_payload_select_ops of net/netfilter/nf_tables_api.c).
    """
    network, *others = networks
    if others or network.prefixlen != 24:
        return f"ip {end} {_any_of(networks)}"
    return f"ip {end} & {network.netmask} == {network.network_address}"


_CLAMP = "tcp flags syn tcp option maxseg size set rt mtu"


def _outward(chain: Chain, these: str) -> list[str]:
    """`these` may go to the internet, and to the resolver with questions.

    Most of the internet is in a /8 of which nothing is refused. That is asked first, since a set
    of whole addresses is found by hash, and one of networks by a search.
    """
    resolver = chain.resolver
    refused = list(UNREACHABLE_FOR_CLIENTS)
    questions = []
    if resolver is not None:
        refused.append(IPv4Network(resolver))
        questions = [
            f"{these} ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept",
            f"{these} ip daddr {resolver} meta l4proto != {{ tcp, udp }} accept",
        ]
    small = [network for network in refused if network.prefixlen >= 8]
    large = "".join(f" ip daddr != {network}" for network in refused if network.prefixlen < 8)
    touched = _any_of(sorted({each.supernet(new_prefix=8).network_address for each in small}))
    return [
        f"{these}{large} ip daddr & 255.0.0.0 != {touched} accept",
        f"{these} ip daddr != {_any_of(list(collapse_addresses(refused)))} accept",
        *questions,
    ]


def _not_inside(chain: Chain, gateway: IPv4Address) -> str:
    """Not to an address of a wire or a tunnel; one of them may be the gateway's as well."""
    tunnels = dict.fromkeys(own for hop in chain.hops for _, own in _addressed(hop))
    inside = [chain.wires, *(own for own in tunnels if own != gateway)]
    return " ".join(f"ip daddr != {each}" for each in inside)


def _outer_matches(chain: Chain, hop: Hop) -> Iterable[str]:
    """What servers send back to the clients in this hop."""
    leg = chain.out_leg(hop)
    for tunnel in hop.tunnels:
        yield f'iifname "out0" {_answer(tunnel, leg, chain.source_port(hop, tunnel.slot))}'


def _outer_arrivals(chain: Chain, hop: Hop) -> Iterable[str]:
    leg = chain.out_leg(hop)
    yield from (f"{match} {_PLAIN} accept" for match in _outer_matches(chain, hop))
    for tunnel in hop.tunnels:
        yield (
            f'iifname "out0" {_PLAIN} ip saddr {tunnel.endpoint} ip daddr {leg}'
            f" ip protocol {_protocol(tunnel)} {_LATER_FRAGMENT} accept"
        )


def _outer_departures(chain: Chain, hop: Hop) -> Iterable[str]:
    leg = chain.out_leg(hop)
    for tunnel in hop.tunnels:
        yield f'oifname "out0" {_flow(tunnel, leg, chain.source_port(hop, tunnel.slot))}'


def _hop_input(chain: Chain, hop: Hop) -> list[str]:
    return [
        *(f"{match} accept" for match in _outer_matches(chain, hop)),
        *(
            f'iifname "{tunnel.slot.link}" ip daddr {own} {_PROBE_ANSWERS} accept'
            for tunnel, own in _addressed(hop)
        ),
    ]


def _hop_output(chain: Chain, hop: Hop) -> list[str]:
    """In the exit, which knows connections, also in which of its zones each of these is."""
    rules = []
    exit_hop = hop is chain.exit
    untracked = " notrack" if exit_hop else ""
    # The supervisor's uid has no name in the hop's user namespace, hence "none of the clients".
    clients = ", ".join(str(chain.uid(hop, slot)) for slot in Slot)
    for tunnel, match in zip(hop.tunnels, _outer_departures(chain, hop), strict=True):
        # The kernel's own WireGuard socket has no owner to ask for.
        owner = (
            f" meta skuid {chain.uid(hop, tunnel.slot)}"
            if tunnel.engine is not Engine.KERNEL
            else ""
        )
        rules.append(f"{match}{owner}{untracked} accept")
        if tunnel.protocol == TCP:
            # The kernel itself ends connections, on behalf of nobody. No data can be in these.
            ends = "tcp flags & (syn | psh) == 0x0 ip length < 80"
            rules.append(f"{match} {ends}{untracked} accept")
        if tunnel.address is not None:
            zone = f" ct zone set {tunnel.slot.table}" if exit_hop else ""
            rules.append(
                f'oifname "{tunnel.slot.link}" ip saddr {tunnel.address}'
                f" icmp type echo-request meta skuid != {{ {clients} }}{zone} accept"
            )
    return rules


def _addressed(hop: Hop) -> list[tuple[Tunnel, IPv4Address]]:
    """The tunnels that can carry something: those that know their own address."""
    return [(tunnel, tunnel.address) for tunnel in hop.tunnels if tunnel.address is not None]


def _protocol(tunnel: Tunnel) -> str:
    return "tcp" if tunnel.protocol == TCP else "udp"


def _flow(tunnel: Tunnel, leg: IPv4Address, port: int) -> str:
    """The exact tuple from a leg to a server."""
    protocol = _protocol(tunnel)
    return (
        f"ip saddr {leg} ip daddr {tunnel.endpoint}"
        f" {protocol} sport {port} {protocol} dport {tunnel.endpoint_port}"
    )


def _answer(tunnel: Tunnel, to: IPv4Address, port: int) -> str:
    """The exact tuple from a server to an address of ours."""
    protocol = _protocol(tunnel)
    return (
        f"ip saddr {tunnel.endpoint} ip daddr {to}"
        f" {protocol} sport {tunnel.endpoint_port} {protocol} dport {port}"
    )


def _chain(
    name: str, kind: str, hook: str, priority: int, rules: Iterable[str], *, ends: str = "drop"
) -> str:
    head = f"type {kind} hook {hook} priority {priority}; policy {ends};"
    # Rules that end by policy "accept" belong to chains that only rewrite, or to the host.
    body = [head, *rules, *(["drop"] if ends == "drop" else [])]
    return f"chain {name} {{\n\t\t" + "\n\t\t".join(body) + "\n\t}"


def _table(*items: str) -> str:
    return "\n".join(f"\t{item}" for item in items)
