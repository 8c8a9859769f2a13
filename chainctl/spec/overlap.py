"""Networks of a chain that must not be one another's: the LAN, the wires, tunnels, servers.

`init`, `plan` and `up` call it before anything is made. With two meanings for one address a
packet goes where the more specific route says, which is how traffic gets around a tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from chainctl.errors import Complaint
from chainctl.spec.model import ChainSpec, HopSpec, ServerProfile
from chainctl.spec.pins import address_of
from chainctl.spec.yaml_text import PathInFile, Place


def check_overlap(
    spec: ChainSpec,
    host_routes: Iterable[IPv4Network] = (),
    pins: Mapping[str, IPv4Address] | None = None,
) -> tuple[Complaint, ...]:
    """Everything that overlaps; empty when nothing does.

    `host_routes` are the destinations in the host's routing tables, without those that lead
    to chainctl's own links. Default routes among them are passed over, also split ones.
    """
    checks = (
        _wires_and_lan(spec),
        _wires_and_host(spec, host_routes),
        _upstream(spec),
        *(_hop(spec, index, hop, pins or {}) for index, hop in enumerate(spec.hops)),
    )
    return tuple(sorted(complaint for check in checks for complaint in check))


def _wires_and_lan(spec: ChainSpec) -> Iterator[Complaint]:
    for index, lan in enumerate(spec.lans):
        network = lan.address.network
        at = ("lan", index, "address") if ("lan", index) in spec.places else ("lan", "address")
        if spec.wires.overlaps(network):
            words = (
                f"the LAN {network} overlaps the addresses chainctl uses inside "
                f"({spec.wires}); give it others: `wires: {{network: …}}`"
            )
            yield _complaint(spec, at, "C130", words)
        for other in spec.lans[:index]:
            if network.overlaps(other.address.network):
                words = (
                    f"the LAN {network} overlaps the one on {other.interface} "
                    f"({other.address.network}); each needs addresses of its own"
                )
                yield _complaint(spec, at, "C138", words)


def _wires_and_host(spec: ChainSpec, routes: Iterable[IPv4Network]) -> Iterator[Complaint]:
    for route in sorted(set(routes)):
        if route.prefixlen > 1 and route.overlaps(spec.wires):
            words = (
                f"this machine has a route to {route}, which overlaps the addresses chainctl "
                f"uses inside ({spec.wires}); give it others: `wires: {{network: …}}`"
            )
            yield _complaint(spec, ("wires", "network"), "C135", words)


def _upstream(spec: ChainSpec) -> Iterator[Complaint]:
    if spec.dns_upstream is None:
        return
    for network, what in _ours(spec):
        if spec.dns_upstream in network:
            words = f"{spec.dns_upstream} lies in {what}; a resolver is asked through the chain"
            yield _complaint(spec, ("dns", "upstream"), "C132", words)


def _hop(
    spec: ChainSpec, index: int, hop: HopSpec, pins: Mapping[str, IPv4Address]
) -> Iterator[Complaint]:
    at: PathInFile = ("hops", index, "servers")
    names: dict[tuple[str, str], list[str]] = {}
    for profile in hop.pool:
        for network, what in _ours(spec):
            for code, whose, address in _addresses(profile, pins):
                if address in network:
                    words = f"{whose} {address} lies in {what}"
                    names.setdefault((code, words), []).append(profile.name)
    for (code, words), (first, *others) in names.items():
        # An account's servers share its addresses: one sentence for all of them.
        more = f" (and {len(others)} more)" if others else ""
        yield _complaint(spec, at, code, f"{first}{more}: {words}")


def _ours(spec: ChainSpec) -> tuple[tuple[IPv4Network, str], ...]:
    lans = (lan.address.network for lan in spec.lans)
    return (
        *((network, f"the LAN {network}") for network in lans),
        (spec.wires, f"the addresses chainctl uses inside ({spec.wires})"),
    )


def _addresses(
    profile: ServerProfile, pins: Mapping[str, IPv4Address]
) -> Iterator[tuple[str, str, IPv4Address]]:
    """Code, name and value of each address that needs a meaning of its own."""
    for interface in profile.addresses:
        yield "C131", "the tunnel's own address", interface.ip
    for resolver in profile.dns:
        yield "C132", "the resolver", resolver
    server = address_of(profile, pins)
    if server:
        yield "C133", "the server's address", server


def _complaint(spec: ChainSpec, path: PathInFile, code: str, message: str) -> Complaint:
    while path and path not in spec.places:
        path = path[:-1]
    place = spec.places.get(path, Place(1, 1))
    return Complaint(str(spec.file), *place, code, message)
