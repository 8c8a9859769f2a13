"""A machine with another kernel, emulated, that sees this host's files and changes none.

    python -m tests.vm.machine COMMAND...      runs COMMAND there and exits as it did

Debian's kernel (`scripts/vm_kernel.sh`) boots in QEMU with a file system in memory that holds
busybox; that mounts this host's root read-only (9p) under a layer in memory and runs the
command in it, as root, with cgroup v2 and no network card. So tests run there with the same
environment, the same tools and the same checkout, on a kernel that has what this one lacks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

_ROOT = Path(__file__).resolve().parents[2]
_KERNEL = _ROOT / ".make/vm/kernel"
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_LAST_WORDS = "machine exits with "


def run(argv: Sequence[str], *, timeout: float, output: IO[str] = sys.stdout) -> int:
    """Run `argv` in a machine of its own, from this folder; what it prints goes to `output`.

    Returns its exit status. Raises RuntimeError when the machine ends without one (a panic,
    or `timeout` seconds are over).
    """
    with tempfile.TemporaryDirectory(prefix="chainctl-vm-") as name:
        folder = Path(name)
        first_files = pack(folder, argv)
        machine = subprocess.Popen(
            ["timeout", f"{timeout:g}", *qemu(first_files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert machine.stdout
        status = None
        try:
            for line in machine.stdout:
                if line.startswith(_LAST_WORDS):
                    status = int(line.removeprefix(_LAST_WORDS))
                elif status is None:
                    output.write(line)
                    output.flush()
        finally:
            machine.terminate()
            machine.wait()
    if status is None:
        raise RuntimeError(f"the machine ended (QEMU: {machine.returncode}) before the command did")
    return status


def qemu(first_files: Path) -> list[str]:
    (kernel,) = (_KERNEL / "boot").glob("vmlinuz-*")
    words = f"""
        qemu-system-{os.uname().machine} -accel tcg,thread=multi -cpu max -smp 2 -m 4096
        -nodefaults -no-reboot -display none -serial stdio -nic none
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap
        -kernel {kernel} -initrd {first_files}
    """
    return [*words.split(), "-append", "console=ttyS0 rdinit=/init quiet loglevel=3 panic=-1"]


def pack(folder: Path, argv: Sequence[str]) -> Path:
    """The first file system: busybox, a few modules, `init`, and the command as a script."""
    root = folder / "root"
    for name in ("bin", "sbin", "proc", "sys", "lower", "upper", "host"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox is not installed"
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "mount", "umount", "mkdir", "modprobe", "cat", "cp", "switch_root"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "sbin/modprobe").symlink_to("/bin/busybox")  # kernel.modprobe
    for module in module_files():
        target = root / module.relative_to(_KERNEL)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, target)
    shutil.copy(Path(__file__).with_name("init"), root / "init")
    (root / "modules").write_text(f"{_KERNEL}/lib/modules\n")
    environ = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    settings = [f"{name}={value}" for name, value in environ.items()]
    command = shlex.join(["env", "-i", *settings, "TERM=dumb", "TMPDIR=/tmp", *argv])
    (root / "command").write_text(f"ip link set lo up\ncd {shlex.quote(str(_ROOT))}\n{command}\n")

    packed = folder / "first.cpio"
    with packed.open("wb") as file:
        listed = "\0".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        subprocess.run(
            ["cpio", "--quiet", "--null", "--create", "--format=newc"],
            cwd=root,
            input=listed.encode(),
            stdout=file,
            check=True,
        )
    return packed


def module_files() -> Iterator[Path]:
    """The modules that `init` loads, what they need, and the index that says so."""
    (folder,) = (_KERNEL / "lib/modules").iterdir()
    index = folder / "modules.dep"
    needs = {}
    for line in index.read_text().splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    by_name = {Path(name).name.removesuffix(".ko"): name for name in needs}
    wanted = [by_name[name] for name in _MODULES]
    for name in wanted:
        wanted += [other for other in needs[name] if other not in wanted]
    yield index
    yield from (folder / name for name in wanted)


def main() -> int:
    return run(sys.argv[1:], timeout=float(os.environ.get("CHAINCTL_VM_TIMEOUT", "1800")))


if __name__ == "__main__":
    sys.exit(main())
