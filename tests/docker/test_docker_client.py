"""wireguard-go under Docker: the contract that every runtime keeps, and what is Docker's own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainctl.host.netns import Namespaces
from chainctl.images.archive import pack
from chainctl.images.image import Image, ensure_image, machine_arch
from chainctl.images.lock import ImageKind
from chainctl.images.shelf import read_root
from chainctl.runtime.container import Archive
from chainctl.runtime.docker import DockerClients
from chainctl.settings import Settings
from tests.docker.daemon import TestDaemon
from tests.kernel.client_rig import Rig
from tests.kernel.test_runtime_client import (
    INTRUDER,
    image,
    intruder,
    test_a_client_that_cannot_start_says_why_and_leaves_nothing,
    test_a_configuration_that_is_refused_is_the_servers_fault,
    test_a_link_that_was_down_loses_nothing,
    test_a_name_that_is_none_is_refused,
    test_a_session_lives_on_when_the_same_configuration_is_set_again,
    test_an_attacker_inside_gets_nowhere,
    test_another_server_replaces_the_one_before,
    test_it_has_no_rights,
    test_it_is_limited,
    test_its_end_is_noticed,
    test_many_start_and_stop_at_once,
    test_one_in_a_namespace_that_was_made_anew_is_replaced,
    test_one_that_should_be_different_is_replaced,
    test_starting_it_again_leaves_it_alone,
    test_stopping_leaves_nothing_and_may_be_repeated,
    test_two_clients_shake_hands_and_carry_packets,
    test_what_runs_is_seen,
    test_words_of_runc_are_handed_on,
)

__all__ = [
    "image",
    "intruder",
    "test_a_client_that_cannot_start_says_why_and_leaves_nothing",
    "test_a_configuration_that_is_refused_is_the_servers_fault",
    "test_a_link_that_was_down_loses_nothing",
    "test_a_name_that_is_none_is_refused",
    "test_a_session_lives_on_when_the_same_configuration_is_set_again",
    "test_an_attacker_inside_gets_nowhere",
    "test_another_server_replaces_the_one_before",
    "test_it_has_no_rights",
    "test_it_is_limited",
    "test_its_end_is_noticed",
    "test_many_start_and_stop_at_once",
    "test_one_in_a_namespace_that_was_made_anew_is_replaced",
    "test_one_that_should_be_different_is_replaced",
    "test_starting_it_again_leaves_it_alone",
    "test_stopping_leaves_nothing_and_may_be_repeated",
    "test_two_clients_shake_hands_and_carry_packets",
    "test_what_runs_is_seen",
    "test_words_of_runc_are_handed_on",
]

pytestmark = pytest.mark.root


class DockerRig(Rig):
    """As `Rig`, with namespaces that containers hold."""

    @property
    def docker(self) -> DockerClients:
        assert isinstance(self.clients, DockerClients)
        return self.clients

    def make_namespace(self, side: str) -> None:
        pause = ensure_image(ImageKind.PAUSE, Settings.load())
        place = self.docker.anchor(side, pause.digest, pause.entrypoint)
        self.namespaces.adopt(side, place)

    def remove_namespace(self, side: str) -> None:
        self.namespaces.remove(side)
        self.docker.release(side)

    def rests(self) -> list[str]:
        own = self.docker.daemon.labelled(f"chainctl.run={self.docker._tag}")
        anchors = {f"chainctl-{self.docker._tag}-{name}" for name in self.docker.anchors()}
        folder = self.settings.run_dir / "docker"
        files = [x for x in self.files_and_mounts("docker") if x != str(folder)]
        return [*files, *(name for name in own if name not in anchors)]


@pytest.fixture
def rig(tmp_path: Path, image: Image, intruder: Path, daemon: TestDaemon) -> Iterator[DockerRig]:
    settings = Settings(run_dir=tmp_path / "run", docker_socket=daemon.socket)
    roots = {
        image.digest: (ImageKind.WIREGUARD, image.root),
        INTRUDER: (ImageKind.WIREGUARD, intruder),
    }
    pause = ensure_image(ImageKind.PAUSE, Settings.load())
    roots[pause.digest] = (ImageKind.PAUSE, pause.root)

    @functools.cache
    def packed(digest: str) -> Archive:
        kind, root = roots[digest]
        archive = pack(kind, machine_arch(), read_root(root))
        return Archive((archive.config_digest, archive.manifest_digest), archive.data)

    clients = DockerClients(settings, packed)
    rig = DockerRig(settings, Namespaces(settings.netns_dir), clients, image)
    try:
        rig.build()
        yield rig
    finally:
        rig.destroy()
        with contextlib.suppress(OSError):
            settings.run_dir.rmdir()
    assert daemon.containers() == []
