"""WireGuard devices of the kernel, which the kernel of most test machines does not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from chainctl.errors import MendHost
from chainctl.host.netns import Namespaces
from chainctl.images.image import ensure_image
from chainctl.images.lock import ImageKind
from chainctl.model.chain import Engine
from chainctl.runtime.runc import Clients
from chainctl.runtime.wireguard import WireGuardDevice
from chainctl.runtime.wireguard_go import WireGuardGo
from chainctl.runtime.wireguard_kernel import (
    KernelWireGuard,
    create_device,
    kernel_wireguard_available,
)
from chainctl.settings import Settings
from tests.kernel.client_rig import (
    INSIDE,
    MTU,
    OTHER,
    Rig,
    configs,
    enter,
    session_is_made_anew,
    session_outlives_the_same_configuration,
    udp_echo,
)

pytestmark = pytest.mark.vm


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    settings = Settings(run_dir=tmp_path / "run")
    image = ensure_image(ImageKind.WIREGUARD, Settings.load())
    rig = Rig(settings, Namespaces(settings.netns_dir), Clients(settings), image)
    try:
        rig.build()
        yield rig
    finally:
        rig.destroy()


def device(rig: Rig, side: str) -> KernelWireGuard:
    return KernelWireGuard("tunA", partial(rig.namespaces.call, side))


def make_kernel_device(rig: Rig, side: str) -> KernelWireGuard:
    """In the place of the TUN."""
    pin = str(rig.namespaces.path(side))
    enter(pin, "ip link delete tunA")
    rig.namespaces.call(side, lambda: create_device("tunA", MTU))
    enter(pin, f"ip address add {INSIDE[side]}/30 dev tunA")
    enter(pin, "ip link set tunA up")
    return device(rig, side)


@pytest.fixture
def devices(rig: Rig) -> dict[str, KernelWireGuard]:
    return {side: make_kernel_device(rig, side) for side in OTHER}


def test_this_kernel_is_seen_to_have_it() -> None:
    assert kernel_wireguard_available()


def test_two_devices_shake_hands_and_carry_packets(
    rig: Rig, devices: dict[str, KernelWireGuard]
) -> None:
    wanted = configs()
    for side in OTHER:
        devices[side].configure(wanted[side])
    assert udp_echo(rig)
    for side, status in ((side, devices[side].read()) for side in OTHER):
        assert devices[side].engine is Engine.KERNEL
        assert status.digest == wanted[side].digest
        assert status.handshake is not None
        assert min(status.received, status.sent) >= 92
        assert status.endpoint == (wanted[side].endpoint, wanted[side].endpoint_port)
        assert status.listen_port == wanted[side].listen_port


def test_the_kernel_and_wireguard_go_understand_each_other(rig: Rig) -> None:
    wanted = configs()
    rig.clients.start(rig.spec("right"))
    both: dict[str, WireGuardDevice] = {
        "left": make_kernel_device(rig, "left"),
        "right": WireGuardGo(rig.clients.control_socket(rig.spec("right"))),
    }
    for side in OTHER:
        both[side].configure(wanted[side])
    assert udp_echo(rig)


def test_a_session_lives_on_when_the_same_configuration_is_set_again(
    rig: Rig, devices: dict[str, KernelWireGuard]
) -> None:
    wanted = configs()
    for side in OTHER:
        devices[side].configure(wanted[side])
    session_outlives_the_same_configuration(rig, devices["left"], wanted["left"])


def test_a_session_is_made_anew_on_demand(rig: Rig, devices: dict[str, KernelWireGuard]) -> None:
    wanted = configs()
    for side in OTHER:
        devices[side].configure(wanted[side])
    session_is_made_anew(rig, devices["left"], wanted["left"])


def test_what_was_configured_before_is_replaced_whole(
    rig: Rig, devices: dict[str, KernelWireGuard]
) -> None:
    first = replace(configs()["left"], keepalive=25)
    second = replace(configs()["left"], preshared=None)
    for wanted in (first, second, replace(second, listen_port=20065)):
        devices["left"].configure(wanted)
        assert devices["left"].read().digest == wanted.digest


def test_a_fresh_device_has_no_configuration(devices: dict[str, KernelWireGuard]) -> None:
    status = devices["left"].read()
    assert (status.digest, status.handshake, status.endpoint) == (None, None, None)


def test_making_a_device_again_sets_its_mtu(rig: Rig, devices: dict[str, KernelWireGuard]) -> None:
    rig.namespaces.call("left", lambda: create_device("tunA", MTU - 60))
    assert f"mtu {MTU - 60}" in enter(str(rig.namespaces.path("left")), "ip link show tunA")


def test_a_device_that_is_gone_is_a_clear_error(rig: Rig) -> None:
    with pytest.raises(MendHost, match="refuses tunB") as caught:
        KernelWireGuard("tunB", partial(rig.namespaces.call, "left")).read()
    assert caught.value.code == "C552"
