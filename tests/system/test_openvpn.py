"""OpenVPN hops: what becomes of what servers say, what the client may do, and how it recovers."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chainctl.lab.openvpn import make_authority, sign
from tests.system.openvpn_lab import OpenVpnLab, give, openvpn_lab, wait_until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def pair() -> Iterator[OpenVpnLab]:
    """Two servers over TCP: the first with certificates and tls-crypt, the second with a login."""
    with openvpn_lab("ovpair", ("tcp", "tcp")) as lab:
        yield lab


@pytest.fixture
def alone(pair: OpenVpnLab) -> Iterator[OpenVpnLab]:
    """The chain is not up when a test begins, and the servers are as they were."""
    profiles = {server.profile: server.profile.read_bytes() for server in pair.lab.servers}
    logins = {path: path.read_bytes() for path in pair.lab.directory.rglob("*.auth")}
    yield pair
    pair.chainctl("down")
    for path, content in {**profiles, **logins}.items():
        path.write_bytes(content)
    for server in pair.lab.servers:
        if pair.lab.state.extra.get(server.name):
            server.restart()


def test_five_hops() -> None:
    with openvpn_lab("ovfive", ("udp", "wg", "tcp", "wg", "udp")) as lab:
        lab.up()
        assert lab.source() == str(lab.lab.server(5).plan.uplink.ip)
        assert [hop["via"] for hop in lab.status()["hops"]][::2] == ["openvpn"] * 3


HOSTILE = (
    'push "redirect-gateway"',
    'push "redirect-gateway def1 local"',
    'push "  redirect-gateway   autolocal"',
    'push "\\"redirect-gateway\\" ipv6"',
    'push "route 192.168.10.0 255.255.255.0"',
    'push "route 0.0.0.0 128.0.0.0 vpn_gateway"',
    'push "route-gateway 192.0.2.1"',
    'push "dhcp-option DOMAIN $(touch${IFS}/tmp/ovpwn)"',
    'push "dhcp-option DNS 192.168.10.1"',
    'push "setenv PATH /tmp"',
    'push "up /bin/false"',
    'push "script-security 3"',
    'push "plugin /tmp/evil.so"',
    'push "tun-mtu 100"',
    'push "ping-restart 1"',
    'push "inactive 1"',
    'push "block-ipv6"',
    'push "ifconfig-ipv6 fd00::2/64 fd00::1"',
    'push "client-nat snat 10.0.0.0 255.0.0.0 11.0.0.0"',
    'push "echo forget-passwords"',
)


def test_what_a_server_pushes_changes_nothing(alone: OpenVpnLab) -> None:
    """Addresses, routes, rules, the client's timers: as with a server that pushes nothing odd."""
    first = alone.lab.server(1)
    alone.use(first)
    alone.up()
    before = alone.network(1)
    assert [
        a["local"] for link in before["addr"] if link["ifname"] == "tunA" for a in link["addr_info"]
    ] == ["10.64.0.2"]
    alone.down()
    first.restart(*HOSTILE)
    alone.up()
    assert alone.network(1) == before
    assert alone.source() == str(first.plan.uplink.ip)
    done = alone.events("address_given")[-1]["facts"]["not_done"]
    assert {"redirect-gateway", "route", "dhcp-option", "up", "plugin", "setenv"} <= set(done)


@pytest.mark.parametrize("address", ["127.0.0.5", "192.168.10.77", "192.0.2.2"])
def test_an_address_that_cannot_be_one_is_refused(alone: OpenVpnLab, address: str) -> None:
    first = alone.lab.server(1)
    alone.use(first)
    first.restart(give(first, address))
    done = alone.chainctl("up", str(alone.lab.chain_file))
    assert done.returncode == 5
    assert "[C419]" in done.stdout + done.stderr
    held = [a["local"] for link in alone.network(1)["addr"] for a in link["addr_info"]]
    assert address not in held
    assert alone.source() == ""


def test_another_address_after_a_reconnect(alone: OpenVpnLab) -> None:
    """It is applied with the gate shut, and the chain goes on."""
    first = alone.lab.server(1)
    alone.use(first, alone.lab.server(2))
    first.restart(give(first, "10.64.0.21"))
    alone.up()
    give(first, "10.64.0.22")
    alone.command(1, "signal SIGUSR1")
    wait_until(lambda: "10.64.0.22" in alone.inside(1, "ip", "addr", "show", "tunA"))
    alone.wait_open()
    assert "10.64.0.21" not in alone.inside(1, "ip", "addr", "show", "tunA")
    assert "10.64.0.21" not in alone.inside(1, "nft", "list", "ruleset")
    assert wait_until(alone.source) == str(alone.lab.server(2).plan.uplink.ip)


def test_a_bad_address_after_a_reconnect_costs_the_server_its_place() -> None:
    with openvpn_lab("ovbad", ("tcp", "wg"), spares=2) as lab:
        lab.up()
        at = lab.status()["hops"][0]["endpoint"].partition(":")[0]
        (serving,) = (s for s in lab.lab.servers if str(s.plan.uplink.ip) == at)
        serving.restart(give(serving, "192.168.10.77"))
        wait_until(lambda: lab.events("server_replaced"))
        lab.wait_open()
        assert lab.status()["hops"][0]["endpoint"].partition(":")[0] != at
        assert "192.168.10.77" not in lab.inside(1, "ip", "addr")


def test_a_refused_login_is_not_tried_elsewhere() -> None:
    """The account is closed while the chain is up: it shuts, and no other server is asked."""
    with openvpn_lab("ovlogin", ("wg", "tcp"), spares=4) as lab:
        lab.up()
        at = lab.status()["hops"][1]["endpoint"].partition(":")[0]
        for server in (s for s in lab.lab.servers if s.plan.hop == 2):
            closed = f"auth-user-pass-verify {lab.lab.home}/closed via-file"
            (lab.lab.home / "closed").write_text("#!/bin/sh\nexit 1\n")
            (lab.lab.home / "closed").chmod(0o700)
            server.restart(closed)
        wait_until(lambda: any(e["code"] == "C412" for e in lab.events("rotation_held")))
        wait_until(lambda: lab.status()["posture"] == "closed")
        assert lab.status()["hops"][1]["endpoint"].partition(":")[0] == at
        assert len(lab.events("candidate_failed")) <= 1
        assert not lab.events("server_replaced")


def _wrong_password(lab: OpenVpnLab) -> int:
    (login,) = lab.lab.directory.rglob("*.auth")
    login.write_text("otter\nwrong\n")
    return 2


def _another_ca(lab: OpenVpnLab) -> int:
    profile = lab.lab.server(1).profile
    other = f"<ca>\n{make_authority().certificate.strip()}\n</ca>"
    profile.write_text(re.sub("<ca>.*</ca>", other, profile.read_text(), flags=re.DOTALL))
    return 1


def _another_wrapping(lab: OpenVpnLab) -> int:
    profile = lab.lab.server(1).profile
    text = profile.read_text()
    begin = text.index("V1-----\n") + len("V1-----\n")
    digit = "0" if text[begin] != "0" else "1"
    profile.write_text(text[:begin] + digit * 32 + text[begin + 32 :])
    return 1


def _expired(lab: OpenVpnLab) -> int:
    return _signed(lab, "-startdate", "20200101000000Z", "-enddate", "20210101000000Z")


def _not_yet(lab: OpenVpnLab) -> int:
    return _signed(lab, "-startdate", "21000101000000Z", "-enddate", "21010101000000Z")


def _signed(lab: OpenVpnLab, *valid: str) -> int:
    """The server shows a certificate of that time."""
    server = lab.lab.server(1)
    authority = lab.lab.state.authority
    assert authority is not None
    pem = sign(authority, f"{server.plan.label}.example", "serverAuth", valid=valid)
    for name, content in zip(("cert", "key"), pem, strict=True):
        (lab.lab.home / f"other.{name}").write_text(content)
    server.restart(*(f"{name} {lab.lab.home}/other.{name}" for name in ("cert", "key")))
    return 1


def _stopped(lab: OpenVpnLab) -> int:
    lab.lab.server(1).kill()
    return 1


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_wrong_password, "C412"),
        (_another_ca, "C413"),
        (_another_wrapping, "C413"),
        (_expired, "C413"),
        (_not_yet, "C414"),
        (_stopped, "C416"),
    ],
)
def test_what_is_wrong_is_said(
    alone: OpenVpnLab, spoil: Callable[[OpenVpnLab], int], code: str
) -> None:
    number = spoil(alone)
    alone.use(alone.lab.server(number))
    done = alone.chainctl("up", str(alone.lab.chain_file))
    alone.lab.server(1).restart()
    assert f"[{code}]" in done.stdout + done.stderr
    assert "STILL CLOSED" in done.stdout + done.stderr
    assert done.returncode == 5


def test_the_client_may_do_nothing_and_secrets_are_nowhere_to_be_read(alone: OpenVpnLab) -> None:
    alone.use(alone.lab.server(1), alone.lab.server(2))
    alone.up()
    password = alone.lab.state.openvpn_keys["server2"].password
    key = alone.lab.state.openvpn_keys["server1"].client_key.splitlines()[1]
    for hop in (1, 2):
        place = Path(f"/proc/{alone.pid(hop)}")
        status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
        assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert status["Uid"].split() == [str(7_100_000 + 2 * (hop - 1))] * 4
        mounts = [line.split() for line in (place / "mounts").read_text().splitlines()]
        assert [mount[3].split(",")[0] for mount in mounts if mount[1] == "/"] == ["ro"]
        assert not (place / "root/bin/sh").exists()
    for place in Path("/proc").glob("[1-9]*"):
        for name in ("cmdline", "environ"):
            try:
                content = (place / name).read_bytes()
            except OSError:
                continue
            assert password.encode() not in content
            assert key.encode() not in content
    left = [path.read_bytes() for path in (alone.run_dir / "clients").rglob("*") if path.is_file()]
    assert len(left) > 4
    assert not [content for content in left if key.encode() in content]
    assert not [content for content in left if password.encode() in content]
    # The same search finds it where it has to be.
    assert _in_memory(alone.pid(2), password.encode())


def _in_memory(pid: int, wanted: bytes) -> bool:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            begin, end = (int(value, 16) for value in span.split("-"))
            if rights.startswith("rw"):
                memory.seek(begin)
                try:
                    content = memory.read(end - begin)
                except OSError:
                    continue
                if wanted in content:
                    return True
    return False


def test_a_client_that_is_killed_comes_back(alone: OpenVpnLab) -> None:
    alone.use(alone.lab.server(1), alone.lab.server(2))
    alone.up()
    killed = alone.pid(1)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: alone.events("repaired"))
    alone.wait_open()
    assert alone.pid(1) != killed
    assert wait_until(alone.source) == str(alone.lab.server(2).plan.uplink.ip)


def test_a_supervisor_that_starts_anew_asks_the_clients(alone: OpenVpnLab) -> None:
    """Nothing is rebuilt, also when the journal has forgotten what servers said."""
    alone.use(alone.lab.server(1), alone.lab.server(2))
    alone.up()
    before = [alone.pid(hop) for hop in (1, 2)], alone.network(1)
    os.kill(int((alone.run_dir / "supervisor.pid").read_text()), signal.SIGKILL)
    alone.up()
    alone.wait_open()
    assert ([alone.pid(hop) for hop in (1, 2)], alone.network(1)) == before
