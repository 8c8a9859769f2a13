"""Images as a Docker daemon has them: by the digests that were told, and able to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from chainctl.images.image import ensure_image, pack_image
from chainctl.images.lock import RECIPES, ImageKind
from chainctl.settings import Settings
from tests.docker.daemon import TestDaemon
from tests.system.test_json import Seen, check

pytestmark = pytest.mark.root


def load(daemon: TestDaemon, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "chainctl", "images", "load", "--json", *words],
        env={**os.environ, "CHAINCTL_DOCKER_SOCKET": str(daemon.socket)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_images_are_loaded_under_their_digest_and_once(daemon: TestDaemon) -> None:
    loaded = load(daemon)
    assert load(daemon) == loaded
    seen = Seen()
    seen.add(loaded)
    check("`images load`", seen)
    assert [one["kind"] for one in loaded] == [kind.value for kind in ImageKind]
    with daemon.api() as api:
        for one in loaded:
            packed = pack_image(ensure_image(ImageKind(one["kind"]), Settings.load()))
            assert one["docker_id"] in (packed.config_digest, packed.manifest_digest)
            found = api.inspect_image(one["reference"])
            assert found["Id"] == one["docker_id"]
            assert found["Config"]["User"] == "65532:65532"
            entrypoint = list(RECIPES[ImageKind(one["kind"])].entrypoint)
            assert found["Config"]["Entrypoint"] == entrypoint


@pytest.mark.parametrize(
    ("kind", "says"), [("openvpn", "OpenVPN 2.6."), ("wireguard", "wireguard-go ")]
)
def test_a_loaded_image_runs(daemon: TestDaemon, kind: str, says: str) -> None:
    (image,) = load(daemon, kind)
    with daemon.api() as api:
        limits = api.create_host_config(network_mode="none", read_only=True, cap_drop=["ALL"])
        made = api.create_container(image["reference"], command=["--version"], host_config=limits)
        try:
            api.start(made["Id"])
            assert api.wait(made["Id"])["StatusCode"] == 0
            assert api.logs(made["Id"]).decode().startswith(says)
        finally:
            api.remove_container(made["Id"], force=True)
