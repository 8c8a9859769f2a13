"""The flake: what it offers, and that its hop images keep the contract of the others.

nixpkgs is not to be had without network. `tests/nix/nixpkgs` stands in for it: all is evaluated,
and the images are put together with one static program in place of each. That the real
programs build is not seen here.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chainctl.images.image import ensure_image
from chainctl.images.lock import ImageKind
from chainctl.settings import Settings
from tests.trixie import program

pytestmark = pytest.mark.root

TREE = Path(__file__).parents[2]
SYSTEMS = {"x86_64-linux", "aarch64-linux"}
HOPS = {kind.value for kind in ImageKind}

_CONFIG = """\
experimental-features = nix-command flakes
sandbox = false
build-users-group =
substituters =
builders =
build-hook =
"""
"""Everything is made here and by the one who calls. The hook would be this program again,
which cannot be started without its loader."""


class Flake:
    """The project's, with the stand-in for its input, in a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._store = folder / "nix"
        self.flake, self.nixpkgs = folder / "flake", folder / "nixpkgs"
        self.flake.mkdir()
        for name in ("flake.nix", "flake.lock", "pyproject.toml", "chainctl/__init__.py"):
            (self.flake / name).parent.mkdir(exist_ok=True)
            shutil.copy(TREE / name, self.flake / name)
        shutil.copytree(TREE / "images", self.flake / "images")
        shutil.copytree(TREE / "tests/nix/nixpkgs", self.nixpkgs)
        pause = ensure_image(ImageKind.PAUSE, Settings.load())
        shutil.copy(f"{pause.root}{pause.entrypoint[0]}", self.nixpkgs / "program")
        (self.nixpkgs / "chainctl").write_text(
            f'#!/bin/sh\nexec {sys.executable} -m chainctl "$@"\n'
        )
        (self.nixpkgs / "chainctl").chmod(0o755)

    def try_nix(self, *words: str) -> subprocess.CompletedProcess[str]:
        places = {
            name: str(self._store / name.lower())
            for name in ("NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR", "NIX_CONF_DIR", "HOME")
        }
        return subprocess.run(
            [
                *program("nix-bin", "/usr/bin/nix"),
                "--offline",
                *words,
                *("--override-input", "nixpkgs", f"path:{self.nixpkgs}", "--no-write-lock-file"),
            ],
            env={"PATH": "/usr/bin:/bin", "NIX_CONFIG": _CONFIG, **places},
            cwd=self.flake,
            capture_output=True,
            text=True,
        )

    def nix(self, *words: str) -> str:
        done = self.try_nix(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def flake(tmp_path_factory: pytest.TempPathFactory) -> Flake:
    return Flake(tmp_path_factory.mktemp("flake"))


def test_it_offers_the_same_on_both_architectures(flake: Flake) -> None:
    shown = json.loads(flake.nix("flake", "show", "--json", "--all-systems", "path:."))
    assert set(shown) == {"packages", "apps", "checks", "devShells"}
    for outputs in shown.values():
        assert set(outputs) == SYSTEMS
    for system in SYSTEMS:
        packages = {"default", "chainctl", "supervisor", "images", *HOPS}
        assert set(shown["packages"][system]) == packages
        assert set(shown["checks"][system]) == {"chainctl", *(f"{hop}-contract" for hop in HOPS)}
        assert set(shown["devShells"][system]) == {"default"}


@pytest.mark.parametrize("output", ["packages", "checks", "devShells"])
def test_every_derivation_evaluates(flake: Flake, output: str) -> None:
    paths = json.loads(
        flake.nix(
            *("eval", "--json", f"path:.#{output}", "--apply"),
            "builtins.mapAttrs (_: builtins.mapAttrs (_: package: package.drvPath))",
        )
    )
    assert set(paths) == SYSTEMS
    assert all(path.endswith(".drv") for one in paths.values() for path in one.values())


def test_the_images_keep_the_contract(flake: Flake) -> None:
    flake.nix("build", "--no-link", *(f"path:.#checks.x86_64-linux.{hop}-contract" for hop in HOPS))


def test_a_program_that_is_not_static_fails_its_check(flake: Flake) -> None:
    program = flake.nixpkgs / "program"
    static = program.read_bytes()
    shutil.copy("/bin/ls", program)
    try:
        done = flake.try_nix("build", "--no-link", "path:.#checks.x86_64-linux.openvpn-contract")
    finally:
        program.write_bytes(static)
    assert done.returncode != 0
    assert "DO NOT USE" in done.stderr
    assert re.search(r"the library lib\S+ is missing", done.stderr)


def test_it_evaluates_for_whoever_only_has_the_committed_lock() -> None:
    lock = json.loads((TREE / "flake.lock").read_text())
    locked = lock["nodes"]["nixpkgs"]["locked"]
    assert lock["nodes"]["root"]["inputs"] == {"nixpkgs": "nixpkgs"}
    assert re.fullmatch(r"[0-9a-f]{40}", locked["rev"])
    assert re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", locked["narHash"])
    wanted = f"github:NixOS/nixpkgs/{lock['nodes']['nixpkgs']['original']['ref']}"
    assert f'inputs.nixpkgs.url = "{wanted}"' in (TREE / "flake.nix").read_text()


def test_what_nixpkgs_lacks_is_pinned_as_in_the_hashed_lock() -> None:
    text = (TREE / "images" / "chainctl.nix").read_text()
    pname, version, hashed = (
        re.findall(pattern, text)[0]
        for pattern in (r'pname = "(wgconfig)"', r'version = "([0-9.]+)"', r'hash = "sha256-(.*)"')
    )
    lock = (TREE / "requirements.lock").read_text()
    pinned = re.findall(rf"^{pname}==({re.escape(version)}) \\\n((?:    --hash.*\n?)+)", lock, re.M)
    assert pinned, f"{pname} {version}"
    assert base64.b64decode(hashed).hex() in pinned[0][1]
