"""The supervisor's socket: who may ask, what it does with nonsense, and that there is one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chainctl import PROTOCOL, __version__
from chainctl.api import client
from chainctl.daemon import describe_error, sweep_out
from chainctl.errors import Complaint, LookAgain, MendFile, MendHost, StepFailed
from chainctl.settings import Settings
from chainctl.store.journal import Journal

root = pytest.mark.root
PATIENCE = 30.0
_REPOSITORY = Path(__file__).parents[3]


@dataclass
class Running:
    """`chainctl serve` in a network namespace of its own."""

    settings: Settings
    process: subprocess.Popen[str]

    def ask(self, **request: Any) -> Any:
        return client.ask(self.settings, request, lambda step: None)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.settings.socket_path))
        except OSError:
            sock.close()
            raise
        sock.settimeout(PATIENCE)
        return sock


def _settings(directory: Path) -> Settings:
    return Settings(directory / "run", directory / "state", directory / "images")


def _environ(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "CHAINCTL_RUN_DIR": str(settings.run_dir),
        "CHAINCTL_STATE_DIR": str(settings.state_dir),
        "CHAINCTL_IMAGE_DIR": str(settings.image_dir),
        "PYTHONPATH": str(_REPOSITORY),
    }


@contextlib.contextmanager
def _serve(settings: Settings, *, ends_with: int = 0) -> Iterator[Running]:
    with subprocess.Popen(
        ["unshare", "--net", sys.executable, "-m", "chainctl", "serve"],
        env=_environ(settings),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not client.is_running(settings):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        try:
            yield Running(settings, process)
        finally:
            process.terminate()
            try:
                _, said = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
    assert process.returncode == ends_with, said


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with _serve(_settings(tmp_path_factory.mktemp("U"))) as running:
        yield running


@root
def test_a_supervisor_without_chains(running: Running) -> None:
    assert running.ask(do="names") == []
    assert running.ask(do="status", chain="") == []
    assert running.ask(do="down", chains=[])["down"] == []
    assert client.is_running(running.settings)


@root
@pytest.mark.parametrize("name", ["", "home", "*", "chain.yaml", "/etc/chain.yaml"])
def test_what_is_no_chain_is_not_taken_down(running: Running, name: str) -> None:
    """Nor are all chains, nor is it remembered."""
    done = subprocess.run(
        [sys.executable, "-m", "chainctl", "down", "--json", name],
        env=_environ(running.settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["message"]) == ("C501", f"there is no chain {name!r}")
    assert running.ask(do="names") == []


@root
def test_nobody_but_root_gets_to_the_socket(running: Running) -> None:
    path = running.settings.socket_path
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


_AS_NOBODY = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("supervisor.sock")
    with sock.makefile("r") as stream:
        print(stream.read(), end="")  # Refused before it asks.
"""


@root
def test_others_are_refused_even_where_they_get_to_it(running: Running) -> None:
    path = running.settings.socket_path
    path.parent.chmod(0o755)
    path.chmod(0o666)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, str(path.parent)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        path.chmod(0o600)
        path.parent.chmod(0o700)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["error"]["code"] == "C306"


@root
@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"not json\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"17\n",
        b"{}\n",
        b'{"do": "dance"}\n',
        b'{"do": "up"}\n',
        b'{"do": "up", "file": 5}\n',
        b'{"do": "status", "chain": null}\n',
        b'{"do": "down", "chains": "home"}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda line: repr(line[:32]),
)
def test_nonsense_gets_an_error_and_the_next_line_an_answer(running: Running, line: bytes) -> None:
    with running.connect() as sock, sock.makefile("rwb") as stream:
        stream.write(line)
        stream.flush()
        error = json.loads(stream.readline())["error"]
        assert error["code"] == "C506"
        assert error["exit_status"] == 2
        assert error["message"]
        stream.write(b'{"do": "names"}\n')
        stream.flush()
        assert json.loads(stream.readline()) == {"done": []}


@root
@pytest.mark.parametrize("said", [b"", b'{"do": "names', b'{"do": "names"}\n' * 1000])
def test_a_client_that_goes_away_disturbs_nobody(running: Running, said: bytes) -> None:
    for _ in range(5):
        with running.connect() as sock:
            sock.sendall(said)
    assert running.ask(do="names") == []


@root
def test_many_clients_at_once(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(running.connect()) for _ in range(20)]
        assert running.ask(do="names") == []
        assert len(idle) == 20


@root
@pytest.mark.parametrize(
    ("request_", "code", "status"),
    [
        ({"do": "close", "chain": "home"}, "C501", 1),
        ({"do": "open", "chain": "home"}, "C501", 1),
        ({"do": "up", "file": "/nowhere/chain.yaml"}, "C101", 2),
        ({"do": "plan", "file": "/nowhere/chain.yaml"}, "C101", 2),
    ],
    ids=["close", "open", "up", "plan"],
)
def test_refusals_reach_the_command(
    running: Running, request_: dict[str, str], code: str, status: int
) -> None:
    with pytest.raises(client.Reported) as caught:
        running.ask(**request_)
    assert (caught.value.code, caught.value.exit_status) == (code, status)


@root
def test_all_complaints_about_a_file_come_through(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text("chain: home\nlan: {interface: eth1, address: nonsense}\nhops: []\n")
    with pytest.raises(client.Reported) as caught:
        running.ask(do="up", file=str(file))
    complaints = caught.value.facts["complaints"]
    assert len(complaints) >= 2
    assert {entry["line"] for entry in complaints} >= {2, 3}
    assert running.ask(do="names") == []


@root
def test_there_is_one_supervisor_in_a_network_namespace(running: Running, tmp_path: Path) -> None:
    """Also with other directories; another namespace may have its own."""
    second = subprocess.run(
        [
            "nsenter",
            f"--net=/proc/{running.process.pid}/ns/net",
            sys.executable,
            *("-m", "chainctl", "serve"),
        ],
        env=_environ(_settings(tmp_path / "second")),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode == 1
    assert "[C505]" in second.stderr
    assert "chainctl status" in second.stderr
    with _serve(_settings(tmp_path / "third")) as third:
        assert third.ask(do="names") == []
    assert running.ask(do="names") == []


@root
def test_what_was_asked_before_the_end_is_answered(tmp_path: Path) -> None:
    """A handler that still worked while the rest was taken apart once brought all of it down."""
    settings = _settings(tmp_path)
    with (
        _serve(settings) as running,
        running.connect() as sock,
        sock.makefile("rwb") as stream,
    ):
        stream.write(b'{"do": "names"}\n' * 2000)
        stream.flush()
        assert json.loads(stream.readline()) == {"done": []}
        running.process.terminate()
        assert [json.loads(line) for line in stream] == [{"done": []}] * 1999
    assert not client.is_running(settings)


@root
def test_who_does_not_read_the_answer_holds_nothing_up(tmp_path: Path) -> None:
    """The end neither: `_serve` waits for it."""
    with contextlib.ExitStack() as later, _serve(_settings(tmp_path)) as running:
        sock = later.enter_context(running.connect())
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):  # The answers are in the way of more questions.
            sock.sendall(b'{"do": "hello"}\n' * 200_000)
        assert running.ask(do="names") == []


@root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_after_its_end_the_next_one_starts(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM as early as it can come: it once was lost right before the wait for it."""
    settings = _settings(tmp_path)
    with _serve(settings, ends_with=-number if number == signal.SIGKILL else 0) as first:
        first.process.send_signal(number)
        first.process.wait(timeout=PATIENCE)
    assert settings.socket_path.exists() == (number == signal.SIGKILL)
    assert not client.is_running(settings)
    with _serve(settings) as again:
        assert again.ask(do="names") == []


_START = """
from chainctl.api import client
from chainctl.errors import ChainctlError
from chainctl.settings import Settings

try:
    client.start(Settings.load())
    print(client.ask(Settings.load(), {"do": "names"}, print))
    print(client.ask(Settings.load(), {"do": "down", "chains": []}, print))
    print(Settings.load().run_dir.exists())
except ChainctlError as error:
    print(error)
"""


def _start(settings: Settings, *enter: str) -> str:
    done = subprocess.run(
        [*enter, sys.executable, "-c", _START],
        env=_environ(settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert not done.stderr
    return done.stdout


@root
def test_a_command_starts_a_supervisor_that_ends_with_the_last_chain(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    said = _start(settings, "unshare", "--net").splitlines()
    assert said == ["[]", "{'down': []}", "False"]


@root
def test_a_supervisor_that_cannot_start_says_why(running: Running, tmp_path: Path) -> None:
    inside = f"--net=/proc/{running.process.pid}/ns/net"
    said = _start(_settings(tmp_path), "nsenter", inside)
    assert said.startswith("[C503]")
    assert "chainctl status" in said or "another supervisor" in said


# Without a supervisor.


def test_no_supervisor_is_said(tmp_path: Path) -> None:
    with pytest.raises(LookAgain) as caught:
        client.ask(_settings(tmp_path), {"do": "names"}, lambda step: None)
    assert caught.value.code == "C502"
    assert caught.value.hint == "chainctl up"


@pytest.mark.parametrize("rest", [b"", b'{"done": ["ho', b'{"done": "h\xc3'])
@pytest.mark.parametrize("reads", [True, False])
def test_one_that_goes_away_in_the_middle_is_said(tmp_path: Path, rest: bytes, reads: bool) -> None:
    """Also in the middle of a line, and before it read what it was asked (ECONNRESET)."""
    settings = _settings(tmp_path)
    settings.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(settings.socket_path))
        listening.listen()

        def say_little() -> None:
            sock, _ = listening.accept()
            with sock, sock.makefile("rwb", buffering=0) as stream:
                stream.readline()
                stream.write(b'{"done": {"protocol": %d, "version": "x"}}\n' % PROTOCOL)
                select.select([sock], [], [], PATIENCE)
                if reads:
                    stream.readline()
                stream.write(b'{"progress": {"step": "shut", "text": "", "seconds": 0.1}}\n')
                stream.write(rest)

        thread = threading.Thread(target=say_little)
        thread.start()
        steps: list[dict[str, Any]] = []
        with pytest.raises(LookAgain) as caught:
            client.ask(settings, {"do": "up", "file": "x"}, steps.append)
        thread.join(timeout=PATIENCE)
    assert caught.value.code == "C502"
    assert [step["step"] for step in steps] == ["shut"]


@pytest.mark.parametrize(
    ("hello", "version"),
    [
        # What a supervisor says that does not know the question.
        ({"error": {"code": "C506", "message": "unknown", "exit_status": 2}}, "of another version"),
        ({"done": {"protocol": PROTOCOL + 1, "version": "9.9"}}, "9.9"),
        ({"done": {"version": "9.9"}}, "9.9"),
        ({"done": []}, "of another version"),
    ],
    ids=["older", "newer", "newest", "odd"],
)
def test_one_of_another_version_is_asked_nothing(
    tmp_path: Path, hello: dict[str, Any], version: str
) -> None:
    settings = _settings(tmp_path)
    settings.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(settings.socket_path))
        listening.listen()
        asked: list[Any] = []

        def answer() -> None:
            sock, _ = listening.accept()
            with sock, sock.makefile("rwb", buffering=0) as stream:
                while line := stream.readline():
                    asked.append(json.loads(line))
                    stream.write(json.dumps(hello).encode() + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LookAgain) as caught:
            client.ask(settings, {"do": "down", "chains": []}, lambda step: None)
        thread.join(timeout=PATIENCE)
    assert caught.value.code == "C509"
    assert f"is chainctl {version}, this is {__version__}" in caught.value.message
    assert "chainctl up" in caught.value.hint
    assert asked == [{"do": "hello"}]


@root
@pytest.mark.parametrize("words", ["status", "logs", "close home", "down", "down home"])
def test_a_damaged_journal_is_said_once(tmp_path: Path, words: str) -> None:
    settings = _settings(tmp_path)
    with contextlib.closing(Journal(settings.journal_path)) as journal:
        journal.want("home", up=True, file=tmp_path / "chain.yaml")
    with settings.journal_path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "chainctl", *words.split(), "--json"],
        env=_environ(settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["error"]["code"] == "C510"


@root
def test_one_that_is_stopped_is_not_waited_for(tmp_path: Path) -> None:
    """Also when so many commands have asked in vain that the kernel takes no more."""
    with _serve(_settings(tmp_path)) as running:
        pid = int(running.settings.pid_path.read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(10):
                with pytest.raises(client.NotAnswering) as caught:
                    client.ask(running.settings, {"do": "names"}, lambda _: None, patience=0.1)
            assert client.is_running(running.settings, patience=0.1)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert caught.value.code == "C508"
        assert str(pid) in caught.value.message
        assert running.ask(do="names") == []


# Errors as the socket carries them.


def test_an_error_keeps_all_it_says() -> None:
    error = MendHost("C331", "there is no eth9", hint="see: ip link", where="chain.yaml:3")
    assert describe_error(error) == {
        "code": "C331",
        "message": "there is no eth9",
        "where": "chain.yaml:3",
        "hint": "see: ip link",
        "exit_status": 3,
    }


@pytest.mark.parametrize(("still_blocked", "status"), [(True, 5), (False, 6)])
def test_a_failed_step_says_whether_it_is_still_shut(still_blocked: bool, status: int) -> None:
    cause = MendHost("C300", "the kernel refused", hint="chainctl doctor")
    facts = describe_error(StepFailed("make tunA", cause, still_blocked=still_blocked))
    assert facts["still_blocked"] is still_blocked
    assert facts["exit_status"] == status
    assert (facts["code"], facts["step"]) == ("C300", "make tunA")
    assert facts["message"] == "the kernel refused"


def test_complaints_travel_with_their_places() -> None:
    complaint = Complaint("chain.yaml", 3, 7, "C112", "no address", "write 192.168.1.1/24")
    facts = describe_error(MendFile.of([complaint]))
    assert facts["complaints"] == [vars(complaint)]
    json.dumps(facts)


def test_a_fault_of_ours_is_said_to_be_one() -> None:
    facts = describe_error(ZeroDivisionError("division by zero"))
    assert facts["code"] == "C599"
    assert "ZeroDivisionError" in facts["message"]
    assert "report" in facts["hint"]


def test_sweeping_out_leaves_what_is_not_ours(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    for name in ("tables", "clients", "netns"):
        (settings.run_dir / name).mkdir(parents=True)
    (settings.run_dir / "clients" / "somebody").touch()
    (settings.run_dir / "supervisor.log").touch()
    sweep_out(settings)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["run", "run/clients", "run/clients/somebody"]
