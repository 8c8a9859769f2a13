"""The same command again, on a machine as whole or as broken as may be: the same end state."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chainctl.api import client
from chainctl.host.groups import group_of
from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings
from chainctl.store.journal import Journal
from tests.leak.namespace import inside
from tests.system.host_state import HostState, assert_same, snapshot
from tests.waiting import wait_until

pytestmark = pytest.mark.root

CHAINCTL = [sys.executable, "-m", "chainctl"]
_STEPS = {"part_made", "part_changed", "part_removed", "hop_proved", "gate_opened", "gate_closed"}


@dataclass(frozen=True)
class Machine:
    """A lab's host, and what it was like before its first chain."""

    lab: Lab
    before: HostState

    @property
    def run_dir(self) -> Path:
        return self.lab.home / "run"

    @property
    def journal(self) -> Path:
        return self.lab.home / "state/journal.sqlite"

    def chainctl(self, *words: str, status: int = 0) -> str:
        """What it prints; it has to end with this status."""
        done = self.lab.run("host", [*CHAINCTL, *words], timeout=60)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def up(self) -> str:
        return self.chainctl("up", str(self.lab.chain_file))

    @property
    def settings(self) -> Settings:
        return Settings.load({**os.environ, **self.lab.environ})

    def refuse(self, file: Path, why: str) -> None:
        """Asked without a command line, within milliseconds."""
        with pytest.raises(client.Reported, match=why):
            client.ask(self.settings, {"do": "up", "file": str(file)}, lambda _: None)

    def is_open(self) -> bool:
        shown = self.lab.run("host", [*CHAINCTL, "status", "--json"], timeout=30).stdout
        return [chain["posture"] for chain in json.loads(shown)["chains"]] == ["open"]

    def kill_supervisor(self) -> None:
        """SIGKILL, and wait for the end: only then the kernel has taken its lock back."""
        handle = os.pidfd_open(int((self.run_dir / "supervisor.pid").read_text()))
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            assert select.select([handle], [], [], 30)[0]
        finally:
            os.close(handle)

    def steps(self) -> int:
        """How many steps were taken so far, as the journal tells."""
        with contextlib.closing(Journal(self.journal)) as journal:
            return sum(one.event.kind in _STEPS for one in journal.events(limit=100_000))

    def fingerprint(self) -> dict[str, Any]:
        """What would be another one if it were made again: inodes, indexes, handles, processes."""
        found: dict[str, Any] = {}
        for pin in sorted((self.run_dir / "netns").iterdir()):
            with pin.open("rb") as entrance:
                found[pin.name] = pin.stat().st_ino, inside(entrance.fileno(), _made_here)
        for state in sorted((self.run_dir / "runc").glob("*/state.json")):
            facts = json.loads(state.read_text())
            found[state.parent.name] = facts["init_process_pid"], facts["init_process_start"]
        return found


def _made_here() -> tuple[list[tuple[int, str]], str]:
    """Links by index, and the nft tables with their handles; elements of sets pass by."""
    listed = ["nft", "--handle", "--stateless", "--terse", "list", "ruleset"]
    tables = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    return socket.if_nameindex(), tables


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    name = f"twice-{secrets.token_hex(3)}"
    engine = find_wireguard_go(Settings.load().image_dir)
    try:
        lab = Lab.create(LabSpec(name, hops=2, spares=0), wireguard_go=engine)
        first = Machine(lab, snapshot(lab))
        # The host learns its router's address from the first chain's packets, and keeps it.
        first.up()
        first.chainctl("down")
        yield Machine(lab, snapshot(lab))
    finally:
        remove(name)


@pytest.fixture
def up(machine: Machine) -> Iterator[Machine]:
    """A chain is up and open; in the end it goes down, and all has to be as before."""
    machine.up()
    yield machine
    machine.chainctl("down")
    assert not machine.run_dir.exists()
    assert_same(machine.before, snapshot(machine.lab))


_MAKE_A_PANEL = """
from chainctl.model.parts import PANEL, Namespace
from chainctl.settings import Settings
from chainctl.supervisor.machine import Machine
machine = Machine(Settings.load())
machine.make(Namespace(PANEL))
machine.close_gate("home", 0)
machine.close()
"""


class TestUp:
    def test_twice_takes_no_step(self, up: Machine) -> None:
        made, steps = up.fingerprint(), up.steps()
        assert "OPEN" in up.up()
        assert (up.fingerprint(), up.steps()) == (made, steps)

    def test_after_the_supervisor_was_killed_nothing_is_made_again(self, up: Machine) -> None:
        made = up.fingerprint()
        up.kill_supervisor()
        up.up()
        assert up.is_open()
        assert up.fingerprint() == made

    def test_a_supervisor_started_by_hand_takes_over_what_a_killed_one_left(
        self, up: Machine
    ) -> None:
        made = up.fingerprint()
        up.kill_supervisor()
        with up.lab.popen("host", [*CHAINCTL, "serve", "--until-idle"]) as process:
            wait_until(up.is_open)
            assert up.fingerprint() == made
            up.chainctl("down")
            assert process.wait(30) == 0

    def test_with_a_broken_file_leaves_the_chain_as_it_is(
        self, up: Machine, tmp_path: Path
    ) -> None:
        made, steps = up.fingerprint(), up.steps()
        broken = tmp_path / "chain.yaml"
        broken.write_text(up.lab.chain_file.read_text().replace("hops:", "hobs:"))
        said = up.chainctl("up", str(broken), status=2)
        assert "hobs" in said
        assert up.is_open()
        assert (up.fingerprint(), up.steps()) == (made, steps)

    def test_a_second_supervisor_is_refused(self, up: Machine) -> None:
        made, steps = up.fingerprint(), up.steps()
        said = up.chainctl("serve", status=1)
        assert "[C505] another supervisor is running" in said
        assert up.is_open()
        assert (up.fingerprint(), up.steps()) == (made, steps)


class TestARefusedFirstUp:
    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        path = tmp_path / "chain.yaml"
        path.write_text("hobs: []\n")
        return path

    @pytest.mark.parametrize("options", [[], ["--foreground"]], ids=["", "foreground"])
    def test_leaves_no_supervisor(self, machine: Machine, broken: Path, options: list[str]) -> None:
        assert "hobs" in machine.chainctl("up", *options, str(broken), status=2)
        assert not machine.run_dir.exists()
        assert_same(machine.before, snapshot(machine.lab))
        assert "OPEN" in machine.up()
        machine.chainctl("down")
        assert not machine.run_dir.exists()

    def test_does_not_end_the_supervisor_of_another(self, machine: Machine, broken: Path) -> None:
        """Whose profiles take it a while to read."""
        chain_file, refused = machine.lab.chain_file, 0
        profiles = chain_file.parent / "profiles"
        profile = next(profiles.glob("hop1/*.conf"))
        with contextlib.ExitStack() as cleaning:
            for number in range(900):
                copy = profile.with_stem(f"copy{number}")
                cleaning.callback(copy.unlink)
                copy.write_bytes(profile.read_bytes())
            with machine.lab.popen("host", [*CHAINCTL, "serve", "--until-idle"]) as process:
                wait_until(partial(client.is_running, machine.settings))
                with _Asker(machine.settings, {"do": "up", "file": str(chain_file)}) as other:
                    while not other.has_heard:
                        machine.refuse(broken, "hobs")
                        refused += 1
                    assert "done" in other.last()
                # Whoever is told that it ends waits for that, and asks once.
                assert refused > 2
                assert machine.is_open()
                machine.chainctl("down")
                assert process.wait(30) == 0


class _Asker:
    """Asks a supervisor for something; when it was made, that is being worked at."""

    def __init__(self, settings: Settings, request: dict[str, Any]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(settings.socket_path))
        lines = [json.dumps(each) + "\n" for each in ({"do": "hello"}, request)]
        self._socket.sendall("".join(lines).encode())
        assert "done" in self._hear()

    def _hear(self) -> dict[str, Any]:
        """Nothing more than one line is taken from the socket."""
        heard = b""
        while not heard.endswith(b"\n"):
            heard += self._socket.recv(1)
        message: dict[str, Any] = json.loads(heard)
        return message

    @property
    def has_heard(self) -> bool:
        """Something about the request."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def last(self) -> dict[str, Any]:
        while (message := self._hear()).keys() & {"progress", "busy"}:
            pass
        return message

    def __enter__(self) -> _Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class TestDown:
    def test_twice(self, machine: Machine) -> None:
        machine.up()
        machine.chainctl("down")
        assert "There is no chain." in machine.chainctl("down")
        assert_same(machine.before, snapshot(machine.lab))

    def test_of_what_a_killed_supervisor_left(self, machine: Machine) -> None:
        machine.up()
        machine.kill_supervisor()
        machine.chainctl("down")
        assert_same(machine.before, snapshot(machine.lab))

    @pytest.mark.parametrize("lost", ["tables", "clients", "runc", "bpf"])
    def test_when_a_part_of_the_run_directory_is_lost(self, machine: Machine, lost: str) -> None:
        machine.up()
        machine.kill_supervisor()
        for path in (machine.run_dir / lost).rglob("*"):
            # What is mounted stays.
            with contextlib.suppress(OSError):
                path.unlink()
        machine.chainctl("down")
        assert_same(machine.before, snapshot(machine.lab))

    def test_when_the_journal_is_lost(self, machine: Machine) -> None:
        machine.up()
        machine.kill_supervisor()
        shutil.rmtree(machine.journal.parent)
        machine.chainctl("down")
        assert_same(machine.before, snapshot(machine.lab))

    def test_when_nothing_is_left_but_what_chains_share(self, machine: Machine) -> None:
        """As after a lost journal, and a `down` killed before its last step."""
        machine.lab.run(
            "host", [sys.executable, "-c", _MAKE_A_PANEL], timeout=30
        ).check_returncode()
        assert (machine.run_dir / "netns" / "panel").exists()
        assert "There is no chain." in machine.chainctl("down")
        assert_same(machine.before, snapshot(machine.lab))

    def test_when_the_journal_was_lost_before_another_up(self, machine: Machine) -> None:
        machine.up()
        machine.kill_supervisor()
        shutil.rmtree(machine.journal.parent)
        machine.up()
        assert machine.is_open()
        machine.chainctl("down")
        wait_until(lambda: not machine.run_dir.exists())
        assert_same(machine.before, snapshot(machine.lab))


class TestTheLab:
    def test_takes_along_what_a_chain_in_it_has_on_the_machine(self) -> None:
        name = f"twice-{secrets.token_hex(3)}"
        engine = find_wireguard_go(Settings.load().image_dir)
        try:
            lab = Lab.create(LabSpec(name, hops=1, spares=0), wireguard_go=engine)
            up = Machine(lab, snapshot(lab))
            up.up()
            roots = (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/"))
            groups = [root / group_of(up.run_dir).strip("/") for root in roots]
            assert any(group.exists() for group in groups)
        finally:
            remove(name)
        assert not any(group.exists() for group in groups)


class TestWithoutRoot:
    @pytest.mark.parametrize("words", [["up"], ["down"], ["status"], ["serve"], ["plan"]])
    def test_it_is_said_and_nothing_changes(self, machine: Machine, words: list[str]) -> None:
        file = [str(machine.lab.chain_file)] if words[0] in ("up", "plan") else []
        # In a user namespace of its own one may read the program, and is nobody.
        argv = ["unshare", "--user", *CHAINCTL, *words, *file]
        done = machine.lab.run("host", argv, timeout=30)
        assert done.returncode == 3
        assert "[C306] this needs root" in done.stderr
        assert_same(machine.before, snapshot(machine.lab))
