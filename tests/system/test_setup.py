"""Set-up on machines that lack something: what it says, and that it touches nothing then."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SETUP = Path(__file__).resolve().parents[2] / "scripts/setup.sh"
_ALWAYS_THERE = ("bash", "dirname", "mkdir", "flock", "uname", "cat", "sha256sum", "unshare")


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with the few commands every machine has, to be the whole PATH."""
    for command in _ALWAYS_THERE:
        provide(tmp_path, command)
    return tmp_path


def provide(folder: Path, command: str) -> None:
    found = shutil.which(command)
    assert found, f"{command} is not installed"
    (folder / command).symlink_to(found)


def set_up(path: Path, *tiers: str) -> subprocess.CompletedProcess[str]:
    """Run set-up without root: in a user namespace that maps nobody every user is nobody."""
    return subprocess.run(
        ["unshare", "--user", str(path / "bash"), str(_SETUP), *tiers],
        env={"PATH": str(path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_apt_it_says_what_is_missing_and_guesses_nothing(commands: Path) -> None:
    done = set_up(commands, "build")
    assert done.returncode == 1
    assert "missing: command clang (compiles the identity filter)" in done.stdout
    assert "in Debian's package clang" in done.stdout
    assert "This is no Debian system" in done.stderr


def test_without_root_it_gives_the_one_command_that_helps(commands: Path) -> None:
    provide(commands, "apt-get")
    provide(commands, "clang")
    done = set_up(commands, "build", "check")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Needs root: run sudo apt-get install --yes --no-remove --no-install-recommends"
        " git clang-format"
    ]
    assert "command clang " not in done.stdout


def test_a_library_listed_first_of_many_is_found(commands: Path) -> None:
    """A list longer than a pipe holds (64 KiB, pipe(7)) is still being written when it is found."""
    lister = commands / "ldconfig"
    lister.write_text(
        "#!/bin/bash\n"
        "printf '\\tlibbpf.so.1 (libc6) => /nowhere\\n'\n"
        "printf '\\tlibother.so.%d (libc6) => /nowhere\\n' {1..9999} || exit 141\n"
    )
    lister.chmod(0o755)
    done = set_up(commands, "run")
    assert "library libnftables.so.1" in done.stdout
    assert "library libbpf.so.1" not in done.stdout


def test_it_says_nothing_where_nothing_is_missing() -> None:
    done = subprocess.run(
        [str(_SETUP), "run", "build", "test"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
