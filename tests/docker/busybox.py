"""An image with nothing in it but busybox, for containers of the tests."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

from tests.docker.daemon import TestDaemon


def import_busybox(daemon: TestDaemon) -> None:
    program = shutil.which("busybox")
    assert program
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(Path(program).resolve(), "bin/busybox")
        for folder in ("etc", "proc", "sys", "dev", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("sh", "ping", "nc", "wget", "sleep", "cat", "ip", "nslookup"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    with daemon.api() as api:
        api.import_image_from_data(buffer.getvalue(), repository="busybox", tag="test")
