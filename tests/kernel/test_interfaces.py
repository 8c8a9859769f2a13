"""Candidates for the LAN side, read in a network namespace made for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
set -e
ip link add eth1 type veth peer name eth2
ip tuntap add dev tun7 mode tun
ip addr add 192.168.10.5/24 dev eth1
ip addr add 203.0.113.5/24 dev eth2
ip addr add 10.1.2.3/8 dev tun7
ip link set lo up
exec "$0" -c 'from chainctl.host.interfaces import *; print(read_lan_candidates())'
"""


@pytest.mark.root
def test_only_ethernet_with_a_private_address() -> None:
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", _SCRIPT, sys.executable],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "(('eth1', IPv4Interface('192.168.10.5/24')),)\n", done.stderr


@pytest.mark.root
def test_lookup_says_when_nobody_answers() -> None:
    code = (
        "from chainctl.host.resolver import lookup_ipv4\n"
        "from chainctl.errors import LookAgain\n"
        "try: print(lookup_ipv4('server.invalid'))\n"
        "except LookAgain as error: print(error)"
    )
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "[C220] no resolver answered for server.invalid\n", done.stderr
