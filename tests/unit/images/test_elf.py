"""The ELF reader agrees with the dynamic linker of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from chainctl.images.elf import parse_elf


def test_a_program_names_its_loader_and_libraries() -> None:
    elf = parse_elf(Path("/bin/ls").read_bytes())
    assert elf is not None
    assert elf.interpreter is not None
    assert Path(elf.interpreter).exists()
    resolved = subprocess.run(["ldd", "/bin/ls"], capture_output=True, text=True, check=True).stdout
    assert "libc.so.6" in elf.needed
    assert all(name in resolved for name in elf.needed)


def test_a_loader_needs_nothing() -> None:
    program = parse_elf(Path("/bin/ls").read_bytes())
    assert program is not None
    assert program.interpreter is not None
    loader = parse_elf(Path(program.interpreter).read_bytes())
    assert loader is not None
    assert (loader.interpreter, loader.needed) == (None, ())


def test_search_paths_are_read() -> None:
    elf = parse_elf(Path(sys.executable).resolve().read_bytes())
    assert elf is not None
    assert all("/" in directory or "$ORIGIN" in directory for directory in elf.search)


def test_other_files_are_none() -> None:
    assert parse_elf(b"#!/bin/sh\n") is None
    assert parse_elf(b"\x7fELF\x01\x01" + bytes(60)) is None
