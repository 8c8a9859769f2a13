"""A chain wired by hand, as a careful person's shell script does it: the baseline of two rows.

The same namespaces, the gateway's included, joined by plain veth pairs with plain routes and
masquerade; the same tunnels to the same servers from the same kind of container (`runc run`
with the same config.json). No panel, no filter, no gate, no proof. What does not depend on the
moment (bundles, the script itself) is prepared before.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from bench.namespaces import DIRECTORY, run
from chainctl.host.files import data_path
from chainctl.images.image import Image, ensure_image
from chainctl.images.lock import ImageKind
from chainctl.lab.lab import Lab, Server
from chainctl.model.openvpn import OpenVpnConfig
from chainctl.model.openvpn import render as render_openvpn
from chainctl.model.parts import TCP, UDP
from chainctl.model.secret import Secret
from chainctl.runtime.bundle import (
    OPENVPN_DIR,
    ClientSpec,
    openvpn_client,
    render_config,
    wireguard_client,
)
from chainctl.runtime.mounts import make_devices, mount_small, place_config, unmount
from chainctl.settings import Settings
from chainctl.spec.openvpn_profile import load_openvpn_profile

_UAPI = Path("/run/wireguard")
_UID = 7_900_001
"""Of the first client; the chain's own are below."""
_GATEWAY, _LAN = "192.168.10.254/24", "192.168.10.0/24"


@dataclass(frozen=True)
class Hop:
    number: int
    server: Server
    mtu: int
    prefix: str
    """Begins every name of it."""
    folder: Path

    @property
    def namespace(self) -> str:
        return f"{self.prefix}hop{self.number}"

    @property
    def link(self) -> str:
        return f"{self.prefix}{self.number}"

    @property
    def uid(self) -> int:
        return _UID + self.number

    @property
    def by_openvpn(self) -> bool:
        return self.server.plan.via != "wg"

    @property
    def profile(self) -> dict[str, str]:
        lines = self.server.profile.read_text().splitlines()
        pairs = (line.partition(" = ") for line in lines if not line.startswith("#"))
        return {key: value for key, _, value in pairs}


class Handwired:
    """`up` and `down` as often as wanted; `mtus` are those of the tunnels, the guard's first."""

    def __init__(self, lab: Lab, mtus: list[int]) -> None:
        self._lab = lab
        self._folder = lab.home / "handwired"
        self._folder.mkdir(mode=0o700)
        prefix = f"h{lab.name[-6:]}"
        self.hops = [
            Hop(number, lab.server(number), mtu, prefix, self._folder / str(number))
            for number, mtu in enumerate(mtus, 1)
        ]
        self._script = self._folder / "up.sh"

    def prepare(self) -> None:
        """The bundles and the script."""
        for hop in self.hops:
            kind = ImageKind.OPENVPN if hop.by_openvpn else ImageKind.WIREGUARD
            self._make_bundle(hop, ensure_image(kind, Settings.load()))
        self._script.write_text(render(self.hops, self._folder))

    def up(self) -> None:
        done = self._lab.run("host", ["sh", "-e", str(self._script)], timeout=60)
        if done.returncode:
            raise RuntimeError(f"the script exited with {done.returncode}: {done.stderr}")

    def down(self) -> None:
        """Everything away, whatever there is of it."""
        for hop in self.hops:
            with suppress(RuntimeError):
                run([*_runc(self._folder), "delete", "--force", hop.link])
            (_UAPI / f"{hop.link}.sock").unlink(missing_ok=True)
            if hop.folder.exists():
                unmount(hop.folder)
                hop.folder.rmdir()
        for namespace in _namespaces(self.hops):
            with suppress(RuntimeError):
                run(["ip", "netns", "del", namespace])
        for command in ("nft delete table ip hand", "ip link delete hand0"):
            self._lab.run("host", command.split(), timeout=10)

    def _make_bundle(self, hop: Hop, image: Image) -> None:
        hop.folder.mkdir(mode=0o700)
        mount_small(hop.folder)
        dev, control = hop.folder / "dev", hop.folder / "control"
        dev.mkdir(mode=0o755)
        control.mkdir(mode=0o700)
        make_devices(dev, hop.uid)
        subprocess.run(["chown", f"{hop.uid}:{hop.uid}", str(control)], check=True)
        spec = _openvpn(hop, image) if hop.by_openvpn else _wireguard(hop, image)
        place_config(control, spec)
        seccomp = json.loads(data_path(spec.seccomp).read_text())
        config = render_config(
            spec, seccomp=seccomp, cgroup=f"/{hop.link}", dev=dev, control=control
        )
        (hop.folder / "config.json").write_text(config)
        if not hop.by_openvpn:
            (hop.folder / "wg.conf").write_text(_render_tunnel(hop))


def _wireguard(hop: Hop, image: Image) -> ClientSpec:
    return wireguard_client(
        hop.link,
        netns=DIRECTORY / hop.namespace,
        link=hop.link,
        uid=hop.uid,
        image=image.digest,
        root=image.root,
        program=image.entrypoint[0],
    )


def _openvpn(hop: Hop, image: Image) -> ClientSpec:
    """With what a chain tells it, but that it waits for nobody, and has no tuning of ours."""
    path = hop.server.profile
    (server,) = load_openvpn_profile(path)
    plan = hop.server.plan
    config = OpenVpnConfig(
        plan.uplink.ip,
        plan.port,
        UDP if plan.via == "udp" else TCP,
        41000 + hop.number,
        server.profile,
    )
    local = IPv4Address(f"10.99.{hop.number}.2")
    lines = render_openvpn(
        config, link=hop.link, local=local, management=f"{OPENVPN_DIR}/m"
    ).splitlines()
    ours = ("management", "fast-io")
    text = "\n".join(line for line in lines if not line.startswith(ours))
    return openvpn_client(
        hop.link,
        netns=DIRECTORY / hop.namespace,
        link=hop.link,
        uid=hop.uid,
        image=image.digest,
        root=image.root,
        program=image.entrypoint[0],
        config=Secret(text),
        config_digest="",
    )


@contextmanager
def handwired(lab: Lab, mtus: list[int]) -> Iterator[Handwired]:
    made = Handwired(lab, mtus)
    try:
        yield made
    finally:
        made.down()


def render(hops: list[Hop], folder: Path) -> str:
    """The script, to be run in the lab's host."""
    added = "\n".join(f"netns add {namespace}" for namespace in _namespaces(hops))
    return "\n".join(
        [
            _here("ip -batch -", added),
            _here("ip -batch -", "\n".join(_links(hops))),
            _here("nft -f -", _masquerade("eth0")),
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            *(_hop_script(hop, last=hop is hops[-1]) for hop in hops),
            _gateway_script(_gateway(hops), len(hops) + 1),
            *(_start(hop, folder) for hop in hops),
        ]
    )


def _gateway(hops: list[Hop]) -> str:
    return f"{hops[0].prefix}gateway"


def _namespaces(hops: list[Hop]) -> list[str]:
    """The guard's first."""
    return [*(hop.namespace for hop in hops), _gateway(hops)]


def _links(hops: list[Hop]) -> Iterator[str]:
    """Made in their namespaces. The gateway's address is on a macvlan, as the chain has it."""
    outer_end = "hand0"
    for namespace in _namespaces(hops):
        yield f"link add {outer_end} type veth peer name out0 netns {namespace}"
        outer_end = f"in0 netns {namespace}"
    yield "address add 10.99.1.1/30 dev hand0"
    yield "link set hand0 up"
    yield "link set eth1 up"
    yield f"link add link eth1 name lan0 netns {_gateway(hops)} type macvlan mode bridge"


def _hop_script(hop: Hop, *, last: bool) -> str:
    plan = hop.server.plan
    endpoint = plan.uplink.ip
    # The first of the pool, where the server says it.
    address = plan.tunnel.ip + 1 if hop.by_openvpn else hop.profile["Address"].partition("/")[0]
    outer, inner = f"10.99.{hop.number}", f"10.99.{hop.number + 1}"
    lines = [
        f"address add {outer}.2/30 dev out0",
        "link set out0 up",
        f"address add {inner}.1/30 dev in0",
        "link set in0 up",
        f"tuntap add dev {hop.link} mode tun user {hop.uid}",
        f"address add {address}/32 dev {hop.link}",
        f"link set {hop.link} mtu {hop.mtu} up",
        f"route add {endpoint} via {outer}.1",
        f"route add default dev {hop.link} table 100",
        "rule add iif in0 table 100",
        *([f"route add {_LAN} via {inner}.2"] if last else []),
    ]
    return _namespace_script(hop.namespace, lines, _masquerade(hop.link))


def _gateway_script(namespace: str, number: int) -> str:
    lines = [
        f"address add 10.99.{number}.2/30 dev out0",
        "link set out0 up",
        f"address add {_GATEWAY} dev lan0",
        "link set lan0 up",
        f"route add default via 10.99.{number}.1",
    ]
    return _namespace_script(namespace, lines, "table ip hand { }")


def _namespace_script(namespace: str, lines: list[str], rules: str) -> str:
    settings = "; ".join(
        f"echo {value} > /proc/sys/net/{key}"
        for key, value in {
            "ipv6/conf/all/disable_ipv6": 1,
            "ipv4/conf/all/rp_filter": 0,
            "ipv4/conf/default/rp_filter": 0,
            "ipv4/ip_forward": 1,
        }.items()
    )
    enter = f"nsenter --net={DIRECTORY / namespace}"
    return "\n".join(
        [
            f"{enter} sh -ec '{settings}'",
            _here(f"ip -n {namespace} -batch -", "\n".join(lines)),
            _here(f"{enter} nft -f -", rules),
        ]
    )


def _masquerade(link: str) -> str:
    return f"""table ip hand {{
    chain nat {{
        type nat hook postrouting priority 100
        oifname "{link}" masquerade
    }}
    chain forward {{
        type filter hook forward priority 0
        tcp flags syn tcp option maxseg size set rt mtu
    }}
}}"""


def _start(hop: Hop, folder: Path) -> str:
    """The socket is there a moment after the container, and nothing says when. One that is bound
    and does not listen yet is removed by wg(8), or rather our link to it.
    """
    configure = f"wg setconf {hop.link} {hop.folder / 'wg.conf'}"
    link = f"ln -sf {hop.folder / 'control' / hop.link}.sock {_UAPI}/{hop.link}.sock"
    started = f"run --detach --bundle {hop.folder} {hop.link}"
    if hop.by_openvpn:
        log = hop.folder / "log"
        return "\n".join(
            [
                f"{' '.join(_runc(folder))} {started} >{log} 2>&1 </dev/null",
                f"until grep -q 'Initialization Sequence Completed' {log}; do :; done",
            ]
        )
    return "\n".join(
        [
            f"{' '.join(_runc(folder))} {started} >{hop.folder / 'log'} 2>&1 </dev/null",
            link,
            f"until {configure} 2>{hop.folder / 'wg.log'}; do {link}; done",
        ]
    )


def _runc(folder: Path) -> list[str]:
    return ["runc", "--root", str(folder / "runc")]


def _render_tunnel(hop: Hop) -> str:
    profile = hop.profile
    lines = [
        "[Interface]",
        f"PrivateKey = {profile['PrivateKey']}",
        f"ListenPort = {41000 + hop.number}",
        "[Peer]",
        f"PublicKey = {profile['PublicKey']}",
        f"Endpoint = {profile['Endpoint']}",
        "AllowedIPs = 0.0.0.0/0",
        "PersistentKeepalive = 25",
    ]
    if preshared := profile.get("PresharedKey"):
        lines.append(f"PresharedKey = {preshared}")
    return "\n".join(lines) + "\n"


def _here(command: str, text: str) -> str:
    return f"{command} <<'END'\n{text.strip()}\nEND"
