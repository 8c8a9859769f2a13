from __future__ import annotations

import pytest

from chainctl.host.files import data_path
from chainctl.images.lock import RECIPES, ImageKind, load_lock, lock_name, parse_lock, render_lock


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_the_shipped_lock_pins_every_package_of_every_image(arch: str) -> None:
    lock = load_lock(arch)
    assert lock.arch == arch
    assert set(lock.images) == set(ImageKind)
    for kind, pins in lock.images.items():
        assert tuple(p.name for p in pins.packages) == RECIPES[kind].packages
        assert all(p.path.startswith("pool/main/") for p in pins.packages)
        assert all(len(p.sha256) == 64 for p in pins.packages)
        assert len(pins.digest) == 64


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_a_lock_is_written_as_it_was_read_and_names_no_host(arch: str) -> None:
    text = data_path(lock_name(arch)).read_text()
    assert render_lock(parse_lock(text)) == text
    assert "://" not in text
