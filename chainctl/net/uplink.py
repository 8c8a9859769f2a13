"""Whether the way to the first server can be at fault before a guard is blamed for silence."""

from __future__ import annotations

from ipaddress import IPv4Address

from chainctl.net.facts import read_network
from chainctl.net.neighbours import find_holders

_PATIENCE = 0.3
"""Seconds for the router to answer an ARP probe; one on the same cable needs about 1 ms."""


def find_fault(interface: str) -> str:
    """What is wrong with the uplink, in words; "" when nothing can be seen from here.

    Looks at the link, its route, and whether the router still answers, so nobody outside the
    user's own network is asked. Called in the uplink's network namespace: with NAT the host's.
    """
    network = read_network()
    link = network.link(interface)
    if link is None:
        return f"the interface {interface} is gone"
    if not (link.up and link.carrier):
        return f"{interface} is not connected"
    routes = [
        route
        for route in network.routes
        if route.default and route.to.version == 4 and route.link == interface
    ]
    if not routes:
        return f"there is no default route by {interface}"
    routers = [route.gateway for route in routes if isinstance(route.gateway, IPv4Address)]
    if link.ethernet and routers and not find_holders(interface, routers[0], _PATIENCE):
        return f"the router {routers[0]} does not answer"
    return ""
