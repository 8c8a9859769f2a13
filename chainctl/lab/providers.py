"""Key pairs, and the files as VPN providers hand them out.

Three providers, one per hop in turn, each with its habits: Windows line ends, an MTU, a
keepalive, a preshared key, an IPv6 address that no hop can use. The first and the third give
their customers the same address.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType

from chainctl.host.run import run
from chainctl.lab import openvpn
from chainctl.lab.layout import GATEWAY, Layout, ServerPlan
from chainctl.lab.openvpn import Authority, OpenVpnKeys


@dataclass(frozen=True)
class KeyPair:
    private: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair(…, {self.public!r})"


@dataclass(frozen=True)
class ServerKeys:
    own: KeyPair
    preshared: str
    """Empty where the provider uses none."""
    devices: tuple[KeyPair, ...]

    def __repr__(self) -> str:
        return f"ServerKeys({self.own!r}, …)"


def make_keys(server: ServerPlan, devices: int) -> ServerKeys:
    preshared = base64.b64encode(secrets.token_bytes(32)).decode() if server.hop % 3 == 0 else ""
    return ServerKeys(_key_pair(), preshared, tuple(_key_pair() for _ in range(devices)))


def _key_pair() -> KeyPair:
    raw = bytearray(secrets.token_bytes(32))
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    private = base64.b64encode(raw).decode()
    return KeyPair(private, run(["wg", "pubkey"], stdin=private).strip())


def render_server(server: ServerPlan, keys: ServerKeys) -> str:
    """The server's side, as `wg setconf` reads it."""
    out = [f"[Interface]\nPrivateKey = {keys.own.private}\nListenPort = {server.port}"]
    for number, device in enumerate(keys.devices, 1):
        out.append(f"[Peer]\nPublicKey = {device.public}")
        out.append(f"AllowedIPs = {server.device_address(number)}/32")
        if keys.preshared:
            out.append(f"PresharedKey = {keys.preshared}")
    return "\n".join(out) + "\n"


def render_files(
    layout: Layout,
    keys: Mapping[str, ServerKeys],
    openvpn_keys: Mapping[str, OpenVpnKeys] = MappingProxyType({}),
    authority: Authority | None = None,
) -> dict[PurePath, str]:
    """The chain file, the pools of its hops, and what is left for tunnels made by hand."""
    out = {PurePath("chain.yaml"): _render_chain(layout)}
    for server in layout.servers:
        if server.via != "wg":
            assert authority is not None, "somebody has to sign for OpenVPN servers"
            own = openvpn_keys[server.name]
            out[profile_path(server)] = openvpn.render_profile(server, own, authority)
            if openvpn.asks_for_login(server):
                out[login_path(server)] = openvpn.render_login(own)
            continue
        out[profile_path(server)] = render_profile(server, keys[server.name], 1)
        for number in range(2, layout.spec.devices + 1):
            path = PurePath("devices") / f"{server.name}-{number}.conf"
            out[path] = render_profile(server, keys[server.name], number)
    return out


def profile_path(server: ServerPlan) -> PurePath:
    return PurePath("profiles") / f"hop{server.hop}" / f"{server.label}.{_ending(server.via)}"


def _ending(via: str) -> str:
    """Of the profiles of a pool."""
    return "*" if "+" in via else "conf" if via == "wg" else "ovpn"


def login_path(server: ServerPlan) -> PurePath:
    """Beside the profile."""
    return profile_path(server).with_suffix(".auth")


def render_profile(server: ServerPlan, keys: ServerKeys, device: int) -> str:
    """A wg-quick file for the customer's device `device`, from 1."""
    address = server.device_address(device)
    private = keys.devices[device - 1].private
    endpoint = f"{server.uplink.ip}:{server.port}"
    match server.hop % 3:
        case 1:
            return f"""\
[Interface]
# Device: Brave Otter
PrivateKey = {private}
Address = {address}/32,fc00:bbbb:bbbb:bb01::{device:x}/128
DNS = {server.tunnel.ip}

[Peer]
PublicKey = {keys.own.public}
AllowedIPs = 0.0.0.0/0,::0/0
Endpoint = {endpoint}
"""
        case 2:
            text = f"""\
[Interface]
# Key for {server.label}
# Bouncing = 0
# NAT-PMP (Port Forwarding) = off
PrivateKey = {private}
Address = {address}/32
DNS = {server.tunnel.ip}

[Peer]
# {server.label.upper()}#{server.number}
PublicKey = {keys.own.public}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = {endpoint}
PersistentKeepalive = 25
"""
            return text.replace("\n", "\r\n")
        case _:
            return f"""\
[Interface]
PrivateKey = {private}
Address = {address}/32
DNS = {server.tunnel.ip}
MTU = 1412

[Peer]
PublicKey = {keys.own.public}
PresharedKey = {keys.preshared}
Endpoint = {endpoint}
AllowedIPs = 0.0.0.0/0
"""


def _render_chain(layout: Layout) -> str:
    spec = layout.spec
    hops = "\n".join(
        f"  - {{name: {name}, servers: ./profiles/hop{number}/*.{_ending(via)}}}"
        for number, (name, via) in enumerate(zip(_hop_names(spec.hops), spec.vias, strict=True), 1)
    )
    return f"""\
# A chain through the lab's internet, the guard first.
chain: {spec.name}
lan: {{interface: eth1, address: {GATEWAY}}}
hops:
{hops}
"""


def _hop_names(hops: int) -> list[str]:
    if hops == 3:
        return ["guard", "middle", "exit"]
    return ["guard", *(f"middle{number}" for number in range(1, hops - 1)), "exit"][-hops:]
