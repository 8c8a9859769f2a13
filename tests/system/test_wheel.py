"""The built wheel, installed with the locked requirements into an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_UV = _ROOT / ".make/uv/bin/uv"


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def data_names() -> list[str]:
    folder = _ROOT / "images"
    # Nix expressions build from a checkout only.
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".nix"]
    names = sorted(str(path.relative_to(folder)) for path in files)
    assert names
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=_ROOT)
    (built,) = folder.glob("chainctl-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of an environment that holds the wheel and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    run(_UV, "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
    install: list[str | Path] = [
        _UV,
        "pip",
        "install",
        "--quiet",
        "--python",
        folder / "venv/bin/python",
    ]
    run(*install, "--require-hashes", "--requirement", _ROOT / "requirements.lock", cwd=folder)
    run(*install, "--no-deps", wheel, cwd=folder)
    return folder / "venv/bin"


def test_the_wheel_carries_what_is_not_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    shipped = {f"chainctl/images/data/{name}" for name in data_names()}
    for name in shipped | {
        "chainctl/net/identity.bpf.o",
        "chainctl/net/tun.bpf.o",
        "chainctl/spec/chain.schema.json",
    }:
        assert sizes.get(name), f"{name} is missing or empty"
    assert {name.split("/")[0] for name in sizes if ".dist-info/" not in name} == {"chainctl"}


def test_the_installed_command_starts_and_knows_its_version(environment: Path) -> None:
    assert "Commands" in run(environment / "chainctl", "--help", cwd=environment)
    version = run(environment / "chainctl", "--version", cwd=environment)
    pinned = run(
        environment / "python",
        "-c",
        "import chainctl; print(chainctl.__version__)",
        cwd=environment,
    )
    assert version == f"chainctl, version {pinned.strip()}\n"


def test_every_module_imports_without_the_development_requirements(environment: Path) -> None:
    program = (
        "import importlib, pkgutil, chainctl\n"
        "for module in pkgutil.walk_packages(chainctl.__path__, 'chainctl.'):\n"
        "    if not module.name.endswith('.__main__'): importlib.import_module(module.name)\n"
        "print(chainctl.__file__)\n"
    )
    assert run(environment / "python", "-c", program, cwd=environment).startswith(
        str(environment.parent)
    )


def test_the_lock_holds_all_that_the_wheel_asks_for(environment: Path) -> None:
    run(_UV, "pip", "check", "--python", environment / "python", cwd=environment)


def test_shipped_data_is_found(environment: Path) -> None:
    names = data_names()
    program = (
        "import sys; from chainctl.host.files import data_path\n"
        "for name in sys.argv[1:]: print(data_path(name))\n"
    )
    found = run(environment / "python", "-c", program, *names, cwd=environment).splitlines()
    assert len(found) == len(names)
    assert all(line.startswith(str(environment.parent)) for line in found)
