"""The compiled policy against what `ClientPolicy` says in words, address by address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.parts import TCP, UDP, ClientPolicy
from chainctl.net.identity import UNKNOWN, WORLD
from chainctl.net.policy import (
    CLASS_OF_PORT,
    PolicyKey,
    PolicyRows,
    PolicyRule,
    RuleId,
    compile_policy,
)

ICMP, ESP = 1, 50


def is_allowed(
    policy: ClientPolicy, source: IPv4Address, destination: IPv4Address, protocol: int, port: int
) -> bool:
    """The words of the docstring, one after the other."""

    def inside(address: IPv4Address, networks: tuple[IPv4Network, ...]) -> bool:
        return any(address in network for network in networks)

    if not inside(source, policy.clients):
        return False
    has_ports = protocol in (TCP, UDP)
    if destination in policy.dns and has_ports and port == 53:
        return True
    if inside(destination, policy.refused) or inside(destination, policy.clients):
        return False
    return not (has_ports and port in (53, 853))


def identify(rows: PolicyRows, address: IPv4Address) -> int:
    if address in rows.endpoints:
        return rows.endpoints[address]
    fitting = [network for network in rows.prefixes if address in network]
    if not fitting:
        return UNKNOWN
    return rows.prefixes[max(fitting, key=lambda network: network.prefixlen)]


def look_up(
    rows: PolicyRows, source: IPv4Address, destination: IPv4Address, protocol: int, port: int
) -> PolicyRule | None:
    """What the filter does with the rows; a source without a narrower identity is nobody."""

    ends = identify(rows, source), identify(rows, destination)
    if ends[0] in (UNKNOWN, WORLD) or ends[1] == UNKNOWN:
        return None
    port_class = CLASS_OF_PORT.get(port, 0) if protocol in (TCP, UDP) else 0
    for key in ((port_class, protocol), (0, protocol), (0, 0)):
        if rule := rows.rules.get(PolicyKey(*ends, *key)):
            return rule
    return None


# A small corner of the address space, so that prefixes nest and meet.
addresses = st.integers(0, 63).map(lambda low: IPv4Address(0x0A000000 + low))
networks = st.builds(
    lambda address, bits: IPv4Network((address, bits), strict=False),
    addresses,
    st.integers(26, 32),
)
policies = st.builds(
    ClientPolicy,
    scope=st.just(1),
    clients=st.lists(networks, max_size=3).map(tuple),
    refused=st.lists(networks, max_size=3).map(tuple),
    dns=st.lists(addresses, max_size=2).map(tuple),
)


@given(
    policies,
    addresses,
    addresses,
    st.sampled_from([TCP, UDP, ICMP, ESP]),
    st.sampled_from([53, 853, 443, 0, 65535]),
)
def test_rows_mean_what_the_policy_says(
    policy: ClientPolicy, source: IPv4Address, destination: IPv4Address, protocol: int, port: int
) -> None:
    rule = look_up(compile_policy(policy), source, destination, protocol, port)
    allowed = rule is not None and not rule.deny
    assert allowed == is_allowed(policy, source, destination, protocol, port)


@given(policies, policies, addresses)
def test_halfway_between_two_policies(
    old: ClientPolicy, new: ClientPolicy, address: IPv4Address
) -> None:
    """Rows are added first and removed last: meanwhile everybody is who he was, or will be."""
    before, after = compile_policy(old), compile_policy(new)
    both = PolicyRows(
        {**before.endpoints, **after.endpoints}, {**before.prefixes, **after.prefixes}
    )
    assert identify(both, address) in (identify(before, address), identify(after, address))
    for key in before.rules.keys() & after.rules.keys():
        assert before.rules[key] == after.rules[key]


def test_a_verdict_can_name_its_rule() -> None:
    policy = ClientPolicy(
        1,
        clients=(IPv4Network("192.168.1.0/24"),),
        refused=(IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16")),
        dns=(IPv4Address("10.8.0.1"),),
    )
    rows = compile_policy(policy)
    client = IPv4Address("192.168.1.5")
    for destination, port, rule in (
        ("198.51.100.9", 443, PolicyRule(RuleId.WORLD)),
        ("198.51.100.9", 53, PolicyRule(RuleId.OTHER_DNS, deny=True)),
        ("10.8.0.1", 53, PolicyRule(RuleId.DNS)),
        ("10.8.0.1", 443, PolicyRule(RuleId.REFUSED, deny=True)),
        ("10.1.1.1", 443, PolicyRule(RuleId.REFUSED, deny=True)),
        ("192.168.1.6", 443, PolicyRule(RuleId.REFUSED, deny=True)),
    ):
        assert look_up(rows, client, IPv4Address(destination), UDP, port) == rule


def test_few_rows_for_an_ordinary_home() -> None:
    refused = [IPv4Network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    home = (IPv4Network("192.168.10.0/24"),)
    rows = compile_policy(ClientPolicy(1, home, tuple(refused), (IPv4Address("10.64.0.1"),)))
    assert len(rows.prefixes) == 5
    assert len(rows.rules) <= 12
