"""Two namespaces with a wire between them, a TUN device in each, and what clients need."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from chainctl.host import tun
from chainctl.host.netns import Namespaces
from chainctl.images.image import Image
from chainctl.model.secret import Secret
from chainctl.model.wireguard import WireGuardConfig
from chainctl.runtime.bundle import ClientSpec, wireguard_client
from chainctl.runtime.runc import Clients
from chainctl.runtime.runtime import Runtime
from chainctl.runtime.wireguard import WireGuardDevice
from chainctl.settings import Settings

UIDS = {"left": 7_100_001, "right": 7_100_002}
OUTSIDE = {"left": IPv4Address("192.0.2.1"), "right": IPv4Address("192.0.2.2")}
INSIDE = {"left": IPv4Address("10.64.0.1"), "right": IPv4Address("10.64.0.2")}
OTHER = {"left": "right", "right": "left"}
PORT = 20064
MTU = 1420
PATIENCE = 10.0


@dataclass
class Rig:
    settings: Settings
    namespaces: Namespaces
    clients: Runtime
    image: Image

    def build(self) -> None:
        """Both namespaces wired up; nobody runs in them."""
        for side in OTHER:
            self.make_namespace(side)
            self.namespaces.call(side, partial(self._make_tuns, side))
        left, right = (str(self.namespaces.path(side)) for side in OTHER)
        enter(left, f"ip link add wire type veth peer name peer netns {right}")
        enter(right, "ip link set peer name wire")
        for side, pin in (("left", left), ("right", right)):
            enter(pin, f"ip address add {OUTSIDE[side]}/30 dev wire")
            enter(pin, f"ip address add {INSIDE[side]}/30 dev tunA")
            enter(pin, "ip link set wire up")
            enter(pin, "ip link set tunA up")

    def make_namespace(self, side: str) -> None:
        self.namespaces.create(side)

    def remove_namespace(self, side: str) -> None:
        self.namespaces.remove(side)

    def _make_tuns(self, side: str) -> None:
        tun.create("tunA", uid=UIDS[side], mtu=MTU)
        # The other slot's: another user's.
        tun.create("tunB", uid=UIDS[side] + 100, mtu=MTU)

    def destroy(self) -> None:
        for name in self.clients.observe():
            self.clients.stop(name)
        for name in self.namespaces.names():
            self.remove_namespace(name)
        self.namespaces.close()

    @property
    def allowed(self) -> set[str]:
        """What an attacker in the client's place can do."""
        return {
            *("fork", "clone-plain", "inet", "netlink-route", "tun-own", "control-socket"),
            *("write-control", "open-null"),
        }

    def rests(self) -> list[str]:
        """What is left of clients: files, mounts, groups, processes."""
        group = Clients(self.settings)._group
        found = self.files_and_mounts("clients")
        found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"*{group}")]
        found += [str(p) for p in Path("/sys/fs/cgroup").glob(group.strip("/"))]
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                zombie = status_of(int(place.name))["State"].startswith("Z")
                if group in (place / "cgroup").read_text() and not zombie:
                    found.append(f"{place} {(place / 'cmdline').read_bytes()!r}")
        return found

    def files_and_mounts(self, folder: str) -> list[str]:
        run = self.settings.run_dir
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return [
            *(str(p) for p in run.rglob("*") if not {"netns", "anchors"} & set(p.parts)),
            *(line for line in mounts if f"/{folder}/" in line and str(run) in line),
        ]

    def spec(self, side: str = "left", name: str | None = None) -> ClientSpec:
        return wireguard_client(
            name or f"rig.{side}",
            netns=self.namespaces.path(side),
            link="tunA",
            uid=UIDS[side],
            image=self.image.digest,
            root=self.image.root,
            program=self.image.entrypoint[0],
        )


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def enter(pin: str, command: str) -> str:
    done = subprocess.run(
        ["nsenter", f"--net={pin}", *command.split()], capture_output=True, text=True, check=True
    )
    return done.stdout


def key_pair() -> tuple[str, str]:
    """A private key and its public key, by wg(8)."""
    private = base64.b64encode(os.urandom(32)).decode()
    done = subprocess.run(
        ["wg", "pubkey"], input=private, capture_output=True, text=True, check=True
    )
    return private, done.stdout.strip()


def configs(keepalive: int = 0) -> dict[str, WireGuardConfig]:
    """One configuration for each side; the other is its only peer."""
    keys = {side: key_pair() for side in OTHER}
    preshared = Secret(base64.b64encode(os.urandom(32)).decode())
    return {
        side: WireGuardConfig(
            private_key=Secret(keys[side][0]),
            listen_port=PORT,
            peer_public_key=keys[other][1],
            preshared=preshared,
            endpoint=OUTSIDE[other],
            endpoint_port=PORT,
            keepalive=keepalive,
        )
        for side, other in OTHER.items()
    }


def udp_echo(rig: Rig) -> bool:
    """A datagram goes through the tunnel and comes back."""
    ends = {}
    for side in OTHER:
        ends[side] = rig.namespaces.call(side, lambda: socket.socket(type=socket.SOCK_DGRAM))
        ends[side].bind((str(INSIDE[side]), 7))
        ends[side].settimeout(PATIENCE)
    with ends["left"] as left, ends["right"] as right:
        left.sendto(b"there", (str(INSIDE["right"]), 7))
        right.sendto(b"and back", right.recvfrom(100)[1])
        return left.recv(100) == b"and back"


def session_outlives_the_same_configuration(
    rig: Rig, left: WireGuardDevice, config: WireGuardConfig
) -> None:
    assert udp_echo(rig)
    before = left.read().handshake
    left.configure(config)
    assert udp_echo(rig)
    assert left.read().handshake == before


def session_is_made_anew(rig: Rig, left: WireGuardDevice, config: WireGuardConfig) -> None:
    assert udp_echo(rig)
    before = left.read()
    left.shake_anew(config)
    assert udp_echo(rig)
    after = left.read()
    assert after.digest == before.digest
    assert after.handshake != before.handshake
