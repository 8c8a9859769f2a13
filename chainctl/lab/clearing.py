"""Removing a lab, complete or not: everything is found by looking, nothing by remembering."""

from __future__ import annotations

import shutil
from pathlib import Path

from chainctl.errors import MendFile, RefusedByPolicy
from chainctl.host import groups
from chainctl.lab import namespaces, processes
from chainctl.lab.layout import LabSpec
from chainctl.lab.making import UAPI_DIR, need_root, uapi_name
from chainctl.lab.state import HOMES, home_of, load_state, locked_home


def remove(name: str) -> bool:
    """Take a lab down, complete or not: processes, namespaces, mounts, files.

    Also a supervisor that runs inside, and its clients. False if there was nothing. Raises
    RefusedByPolicy C607 when called from within the lab.
    """
    need_root()
    LabSpec(name)
    if not home_of(name).exists() and not namespaces.existing(name):
        return False
    with locked_home(name):
        clear(name)
    return True


def clear(name: str, *, keep_home: bool = False) -> None:
    """Remove whatever there is of a lab, by looking; the caller holds its home."""
    home = home_of(name)
    # What a killed `up` had begun goes on without it.
    processes.kill_helpers(name)
    places = namespaces.existing(name)
    pins = [*(namespaces.NETNS_DIR / place for place in places), *namespaces.pins_below(home)]
    with namespaces.held(pins) as inodes:
        if not processes.namespaces_of("self").isdisjoint(inodes):
            raise RefusedByPolicy(
                "C607", f"this is inside the lab {name!r}", hint="call it outside"
            )
        processes.kill_all_in(inodes)
        namespaces.unmount_below(home)
        namespaces.remove(places)
        # Somebody may have entered between the look and the removal; now nobody can.
        processes.kill_all_in(inodes)
    groups.remove_empty(groups.group_of(home / "run"))
    for uapi in UAPI_DIR.glob(f"{uapi_name(name, 0)[:-1]}*.sock"):
        uapi.unlink(missing_ok=True)
    _remove_files(home)
    for entry in home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if not keep_home:
        home.rmdir()
        if not any(HOMES.iterdir()):
            HOMES.rmdir()


def _remove_files(home: Path) -> None:
    """The chain file and profiles; folders only when nothing of the user's is in them."""
    try:
        state = load_state(home.name)
    except MendFile:  # Cut short before anything was written there, or damaged since.
        return
    folders = {state.directory / parent for path in state.files for parent in path.parents}
    for path in state.files:
        (state.directory / path).unlink(missing_ok=True)
    if not state.made_directory:
        folders.discard(state.directory)
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
