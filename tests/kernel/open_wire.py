"""Puts programs that judge nothing in the place of ours, to show that another layer holds alone.

To be called by a thread inside the link's namespace, as the filter itself.
"""

from __future__ import annotations

from pathlib import Path

from chainctl.net import clsact, libbpf
from chainctl.net.filter import LAYOUT

OBJECT = Path(__file__).parent / "bpf" / "open_wire.bpf.o"


def attach_open_wire(pin_dir: Path, ifindex: int) -> None:
    """The port carries everything to the far end that the filter's own map names."""
    opened = libbpf.Object(OBJECT, pin_root=pin_dir / LAYOUT, device_maps=["far_map"])
    try:
        clsact.attach(ifindex, libbpf.INGRESS, opened.program("open_wire"))
    finally:
        opened.close()


def attach_pass_all(ifindex: int) -> None:
    """The tunnel device lets every source pass."""
    opened = libbpf.Object(OBJECT)
    try:
        clsact.attach(ifindex, libbpf.EGRESS, opened.program("pass_all"))
    finally:
        opened.close()
