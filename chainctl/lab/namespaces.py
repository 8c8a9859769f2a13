"""Making and removing the lab's namespaces, with iproute2, nft and nsenter.

Each phase is done for all places at once: every call is a process start, and most of a
lab's second would be spent waiting for them one after the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from chainctl.errors import MendHost
from chainctl.host.run import run
from chainctl.lab import processes
from chainctl.lab.layout import End, Layout, Place

NETNS_DIR = Path("/run/netns")
_FIRST_INDEX = 100
_BOX_TABLE = 100
_BOX_LINK = "box"  # programs/box.py makes it


def make(layout: Layout) -> None:
    """All places with their cables, addresses, routes and rules."""
    lab = layout.spec.name
    places = {layout.namespace(place.name): place for place in layout.places}
    _run(lab, ["ip", "-batch", "-"], "".join(f"netns add {name}\n" for name in places))
    _run_in_all((name, _harden(place)) for name, place in places.items())
    _run(lab, ["ip", "-batch", "-"], render_cables(layout))
    _run_in_all((name, render_place(layout, place)) for name, place in places.items())


def run_in(namespace: str, script: str) -> None:
    """Run a shell script there; the first command that fails ends it. Raises MendHost."""
    _run(namespace.split(".")[0], enter(namespace, ["sh", "-e", "-s"]), script)


def _run_in_all(scripts: Iterable[tuple[str, str]]) -> None:
    """Side by side. Raises the first one's MendHost."""
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda item: run_in(*item), scripts):
            pass


def _run(lab: str, argv: Sequence[str], stdin: str) -> None:
    run(argv, stdin=stdin, env={**os.environ, processes.HELPS: lab})


def enter(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the namespace; the pid stays the same."""
    return ["nsenter", f"--net={NETNS_DIR / namespace}", "--", *argv]


def existing(lab: str) -> list[str]:
    """The namespaces of a lab that are there, complete or not."""
    if not NETNS_DIR.is_dir():
        return []
    ours = re.compile(re.escape(lab) + r"\.(host|client\d*|switch|modem|internet|target|server\d+)")
    return sorted(path.name for path in NETNS_DIR.iterdir() if ours.fullmatch(path.name))


@contextmanager
def held(paths: Iterable[Path]) -> Iterator[set[int]]:
    """Inodes of the namespaces mounted on these files, which the kernel gives to no other
    namespace meanwhile, whatever happens to the mounts."""
    with ExitStack() as stack:
        out = set()
        for path in paths:
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                out.add(os.fstat(descriptor).st_ino)
        yield out


def remove(names: Sequence[str]) -> None:
    for name in names:
        try:
            run(["ip", "netns", "delete", name])
        except MendHost:
            # Killed between creating the file and mounting on it, or removed meanwhile.
            (NETNS_DIR / name).unlink(missing_ok=True)


def pins_below(directory: Path) -> list[Path]:
    """The files below a directory on which namespaces are mounted."""
    return [path for kind, path in _mounts_below(directory) if kind == "nsfs"]


def unmount_below(directory: Path) -> None:
    """The last mounted first; one that is busy goes when it no longer is."""
    for _, path in reversed(_mounts_below(directory)):
        run(["umount", "--lazy", str(path)])


def _mounts_below(directory: Path) -> list[tuple[str, Path]]:
    """(type, place) in the order of mounting, from proc_pid_mountinfo(5)."""
    out = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        path = Path(before.split()[4].replace("\\040", " "))
        if path.is_relative_to(directory):
            out.append((after.split()[0], path))
    return out


def render_cables(layout: Layout) -> str:
    """For `ip -batch`: each pair is made directly in its two namespaces, so that no link of
    any lab is ever in the machine's own.

    Every end has an index of its own. The kernel takes a link for one without a peer when both
    have the same index, in whichever namespaces, and then lets it carry packets up to a second
    late (net/core/link_watch.c, linkwatch_urgent_event).
    """
    lines = []
    for number, cable in enumerate(layout.cables):
        a, b = (
            f"{end.link} index {_FIRST_INDEX + 2 * number + side} mtu {end.mtu}"
            f" netns {layout.namespace(end.place)}"
            for side, end in enumerate((cable.a, cable.b))
        )
        lines.append(f"link add {a} type veth peer name {b}\n")
    return "".join(lines)


def render_place(layout: Layout, place: Place) -> str:
    """The script that completes a place whose cables are plugged in."""
    ends = [end for cable in layout.cables for end in (cable.a, cable.b) if end.place == place.name]
    lines = ["link set lo up"]
    if place.bridge:
        lines.append("link add bridge type bridge")
    for end in ends:
        lines += _link_lines(end, offload=layout.spec.offload)
        if place.bridge:
            lines.append(f"link set {end.link} master bridge")
    if place.bridge:
        lines.append("link set bridge up")
    lines += [f"route add {route}" for route in place.routes]
    return _here("ip -batch -", "\n".join(lines)) + (
        _here("nft -f -", place.nft) if place.nft else ""
    )


def render_tunnel(link: str, address: IPv4Interface, config: str) -> str:
    """The script that makes a server's new device its `wg0` and puts it into service.

    Configured before it is up: a client's first handshake is answered or refused, not lost.
    """
    up = f"link set {link} name wg0\naddress add {address} dev wg0\nlink set wg0 mtu 1420 up"
    return _here(f"wg setconf {link} /dev/stdin", config) + _here("ip -batch -", up)


def render_box_rules(lines: Iterable[tuple[str, IPv4Network]]) -> str:
    """The script that sends these servers' packets through the box: (link, network) each.

    What comes out of the box goes on by the main table, so that nothing passes it twice.
    """
    rules = [f"rule add priority 10 iif {_BOX_LINK} lookup main"]
    for link, network in lines:
        rules.append(f"rule add priority 20 iif {link} lookup {_BOX_TABLE}")
        rules.append(f"rule add priority 20 to {network} lookup {_BOX_TABLE}")
    flush = (
        "ip rule flush priority 10 2>/dev/null || :\nip rule flush priority 20 2>/dev/null || :\n"
    )
    return flush + _here("ip -batch -", "\n".join(rules))


def render_box_link() -> str:
    """The script that puts the box's device into service, once the box has made it."""
    return _here(
        "ip -batch -",
        f"link set {_BOX_LINK} mtu 9200 txqueuelen 20000 up\n"
        f"route replace default dev {_BOX_LINK} table {_BOX_TABLE}",
    )


def _harden(place: Place) -> str:
    """Before the first link: a new namespace inherits the machine's settings."""
    settings = {
        "ipv6/conf/all/disable_ipv6": 1,
        "ipv6/conf/default/disable_ipv6": 1,
        "ipv4/conf/all/rp_filter": 0,
        "ipv4/conf/default/rp_filter": 0,
        "ipv4/conf/all/send_redirects": 0,
        "ipv4/conf/default/send_redirects": 0,
        "ipv4/ip_forward": int(place.forwards),
        "ipv4/ip_no_pmtu_disc": int(not place.sets_df),
    }
    return "".join(f"echo {value} > /proc/sys/net/{key}\n" for key, value in settings.items())


def _link_lines(end: End, *, offload: bool) -> list[str]:
    # One segment at most: the kernel cuts up what is larger before it is on the cable.
    plain = "" if offload else " gso_max_segs 1"
    address = [f"address add {end.address} dev {end.link}"] if end.address else []
    return [*address, f"link set {end.link}{plain} up"]


def _here(command: str, text: str) -> str:
    return f"{command} <<'END'\n{text.strip()}\nEND\n"
