"""What `up`, `status`, `down`, `close`, `open` and `plan` print for what a supervisor answers.

The supervisor here is a socket that says what it was given; the facts come from the code that
makes them.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from chainctl import PROTOCOL
from chainctl.cli.main import main
from chainctl.daemon import describe_error
from chainctl.errors import (
    ChainctlError,
    ChangeServer,
    Complaint,
    MendFile,
    MendHost,
    RefusedByPolicy,
    StepFailed,
)
from chainctl.model.clients import DockerSeen, Member, NamedClient, Neighbour
from chainctl.net.layout import layout
from chainctl.supervisor.clients import describe_clients, describe_published
from chainctl.supervisor.plan import plan
from chainctl.supervisor.sniffer import Reading
from chainctl.supervisor.status import _hops
from chainctl.supervisor.suspicion import Behaviour
from chainctl.supervisor.verdict import (
    Evidence,
    Verdict,
    judge_answering,
    judge_silent,
)
from chainctl.supervisor.words import describe_plan
from chainctl.supervisor.worker import Outlook, Rest
from tests.conftest import Golden
from tests.unit.supervisor.chains import make_chain

pytestmark = pytest.mark.root

GOLDEN = Path(__file__).parent / "golden"
Facts = dict[str, Any]
Says = Callable[[list[Facts]], None]

CHAIN = make_chain(3)
NOW = 1000.0
_FINE = Reading(
    sent=500, heard=500, recent=(500, 500), last_heard=NOW - 0.2, behaviour=Behaviour(0.0141)
)
_LOSSY = replace(_FINE, recent=(121, 60), behaviour=Behaviour(0.0141, loss=0.5))
_UNHEARD = Reading(sent=3, unanswered=3)
_SILENT = replace(
    _FINE,
    sent=541,
    recent=(541, 500),
    last_heard=NOW - 14.0,
    silent_since=NOW - 13.8,
    unanswered=41,
)


_OUTLOOK = {
    "guard": Outlook(12 * 86400.0, 2, {}, None, None, None),
    "middle": Outlook(3 * 3600.0, 1, {"server-2-2": Rest(40, "dead")}, None, 9 * 3600.0, None),
    "third": Outlook(40.0, 0, {}, "server-3-2", None, None),
}


def _judge(known: dict[str, Reading], number: int, silent: bool) -> Verdict | None:
    names = list(known)
    outer = names[number - 2] if number > 1 else ""
    evidence = Evidence(known[names[number - 1]], NOW, outer=outer, loss_allowed=0.2)
    return judge_silent(evidence) if silent else judge_answering(evidence)


def _chain(posture: str = "open", **readings: Reading) -> Facts:
    known = {hop.name: readings.get(hop.name, _FINE) for hop in CHAIN.hops}
    return {
        "chain": "home",
        "file": "/etc/chain.yaml",
        "posture": posture,
        "proved_seconds_ago": 2.0,
        "closed_seconds": None,
        "why_closed": None,
        "mtu": CHAIN.mtu,
        "hops": _hops(
            CHAIN, known, _OUTLOOK, lambda hop, silent: _judge(known, hop.number, silent), NOW
        ),
        "repairs": [],
        "notes": [],
    }


def _closed(code: str, text: str, hint: str, **readings: Reading) -> Facts:
    why = {"code": code, "text": text, "hint": hint}
    return {**_chain("closed", **readings), "closed_seconds": 14.2, "why_closed": why}


_PUBLISHING = make_chain(3, guests=True, published=2)
_WEB = Member("stack-web-1", "0a1b", IPv4Address("172.31.7.2"), "02:42:ac:1f:07:02")
_USED = {
    "clients": describe_clients(
        _PUBLISHING,
        [NamedClient("web", container="stack-web-1"), NamedClient("tv", mac="02:00:5e:10:00:01")],
        DockerSeen(answers=True, members=(_WEB,)),
        [Neighbour("lan0", IPv4Address("192.168.10.22"), "02:00:5e:10:00:09")],
    ),
    "published": describe_published(_PUBLISHING),
}


def _step(step: str, text: str, seconds: float) -> Facts:
    return {"progress": {"step": step, "text": text, "seconds": seconds}}


_STEPS = [
    _step("file", "3 hops, 14 servers", 0.012),
    _step("note", "[N101] guard/ch-zrh-01.conf:4:11 IPv6 parts are left out", 0.0),
    _step("shut", "LAN closed before anything starts", 0.04),
    _step("guard", "server-1-1 answers both ways", 0.31),
]


def _failed(cause: ChainctlError, *, still_blocked: bool = True) -> Facts:
    return {"error": describe_error(StepFailed("prove hop 2", cause, still_blocked=still_blocked))}


_NO_ANSWER = ChangeServer(
    "C410",
    "server-2-1 does not answer: 41 asked, 0 heard for 12.0 s",
    hint="check the key and the address in its profile, or choose another server",
    where="hop middle",
)

CASES: dict[str, tuple[tuple[str, ...], list[Facts], int]] = {
    "up": (("up", "chain.yaml"), [*_STEPS, {"done": [_chain()]}], 0),
    "up_no_answer": (
        ("up", "chain.yaml"),
        [*_STEPS, _step("middle", "server-2-1 does not answer", 12.0), _failed(_NO_ANSWER)],
        5,
    ),
    "up_possibly_open": (
        ("up", "chain.yaml"),
        [_failed(MendHost("C300", "the kernel refused: EIO"), still_blocked=False)],
        6,
    ),
    "up_complaints": (
        ("up", "chain.yaml"),
        [
            {
                "error": describe_error(
                    MendFile.of(
                        [
                            Complaint("chain.yaml", 3, 7, "C112", "no address", "write 10.0.0.1/8"),
                            Complaint("chain.yaml", 2, 1, "C104", "unknown word 'lam'", ""),
                        ]
                    )
                )
            }
        ],
        2,
    ),
    "up_fault": (("up", "chain.yaml"), [{"error": describe_error(ValueError("odd"))}], 3),
    "status_open": (("status",), [{"done": [_chain()]}], 0),
    "status_open_mended": (
        ("status",),
        [
            {
                "done": [
                    {
                        **_chain(),
                        "repairs": [
                            {"text": f"routing rule {n} of home.hop1 was missing", "seconds_ago": n}
                            for n in (4000, 90, 60, 30, 5)
                        ],
                        "notes": ["[N104] eth1 has an IPv6 router"],
                    }
                ]
            }
        ],
        0,
    ),
    "status_clients": (("status",), [{"done": [{**_chain(), **_USED}]}], 0),
    "status_lossy": (("status",), [{"done": [_chain(middle=_LOSSY)]}], 0),
    "status_fault": (
        ("status",),
        [
            {
                "done": [
                    _closed(
                        "C410",
                        "nothing leaves until middle answers",
                        "chainctl explain home",
                        middle=_SILENT,
                        third=_SILENT,
                    )
                ]
            }
        ],
        1,
    ),
    "status_never_heard": (
        ("status",),
        [
            {
                "done": [
                    _closed(
                        "N503",
                        "not proved yet",
                        "",
                        **dict.fromkeys(
                            ("guard", "middle", "third"), Reading(sent=3, unanswered=3)
                        ),
                    )
                ]
            }
        ],
        1,
    ),
    "status_none": (("status",), [{"done": []}], 0),
    "close": (
        ("close", "home"),
        [{"done": [_closed("N502", "shut by hand", "chainctl open home")]}],
        0,
    ),
    "open": (("open", "home"), [*_STEPS[3:], {"done": [_chain()]}], 0),
    "open_not_up": (
        ("open", "home"),
        [
            {
                "error": describe_error(
                    RefusedByPolicy("C501", "the chain home is not up", hint="chainctl up")
                )
            }
        ],
        1,
    ),
    "down": (
        ("down",),
        [
            _step("shut", "LAN closed first", 0.01),
            _step("down", "41 parts taken away", 0.4),
            {"done": {"down": ["home"], "ending": False}},
        ],
        0,
    ),
    "down_none": (("down",), [{"done": {"down": [], "ending": False}}], 0),
    "plan": (
        ("plan", "chain.yaml"),
        [
            {
                "done": describe_plan(
                    CHAIN,
                    make_chain(3, servers=(1, 1, 2)),
                    plan(layout(CHAIN), layout(make_chain(3, servers=(1, 1, 2)))),
                )
            }
        ],
        0,
    ),
}


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Says]:
    """A supervisor that answers one request with these messages."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chain.yaml").touch()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    monkeypatch.setenv("CHAINCTL_RUN_DIR", str(run_dir))
    monkeypatch.setenv("CHAINCTL_STATE_DIR", str(tmp_path / "state"))
    threads: list[threading.Thread] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run_dir / "supervisor.sock"))
        listening.listen()

        def begin(messages: list[Facts]) -> None:
            threads.append(threading.Thread(target=_answer, args=(listening, messages)))
            threads[-1].start()

        yield begin
        listening.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _answer(listening: socket.socket, messages: list[Facts]) -> None:
    while True:
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        with sock, sock.makefile("rwb") as stream:
            # The first connection may only look whether anybody listens.
            if stream.readline():
                stream.write(json.dumps({"done": {"protocol": PROTOCOL}}).encode() + b"\n")
                stream.flush()
                stream.readline()
                for message in messages:
                    stream.write(json.dumps(message).encode() + b"\n")


def _run(arguments: tuple[str, ...]) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("name", CASES)
def test_what_is_printed(name: str, says: Says, golden: Golden) -> None:
    arguments, messages, status = CASES[name]
    says(messages)
    done = _run(arguments)
    assert done.exit_code == status, done.output
    golden(GOLDEN / f"{name}.txt", done.output)


def test_paths_are_shown_as_seen_from_here(says: Says, tmp_path: Path) -> None:
    """The supervisor, which is somewhere else, says them from the root."""
    beside = f"/elsewhere{tmp_path}/x.conf"
    complaint = Complaint(f"{tmp_path}/chain.yaml", 3, 1, "C104", f"not {beside}")
    note = _step("note", f"[N101] {tmp_path}/guard/ch.conf:4:11 left out", 0.0)
    says([note, {"error": describe_error(MendFile.of([complaint]))}])
    done = _run(("up", "chain.yaml"))
    assert "Note [N101] guard/ch.conf:4:11 left out" in done.output
    assert f"[C104] chain.yaml:3:1 not {beside}" in done.output


@pytest.mark.parametrize("name", CASES)
def test_json_says_the_same(name: str, says: Says) -> None:
    arguments, messages, status = CASES[name]
    says(messages)
    done = _run((*arguments, "--json"))
    assert done.exit_code == status, done.output
    (said,) = [message for message in messages if "progress" not in message]
    facts = json.loads(done.output)
    if "error" in said:
        assert facts["error"]["code"] == said["error"]["code"]
        assert facts["error"].get("still_blocked") == said["error"].get("still_blocked")
    elif arguments[0] == "down":
        assert facts["down"] == said["done"]["down"]
    elif arguments[0] == "plan":
        assert facts == said["done"]
    else:
        assert facts == {"chains": said["done"]}


def test_a_file_that_is_not_there(says: Says) -> None:
    done = _run(("up", "nowhere.yaml"))
    assert done.exit_code == 2
    assert "[C101]" in done.output
    assert "chainctl init" in done.output


@pytest.mark.parametrize("command", ["explain", "status"])
def test_a_chain_that_is_not_up(says: Says, command: str) -> None:
    says([{"done": []}])
    done = _run((command, "nosuch"))
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert ("[C501] the chain nosuch is not up" in done.output) == (command == "explain")


@pytest.mark.parametrize("number", ["0", "-1", "99999999999999999999"])
def test_logs_of_no_or_too_many_lines(says: Says, number: str) -> None:
    done = _run(("logs", "-n", number))
    assert (done.exit_code, "1<=x<=100000" in done.output) == (2, True), done.output


@pytest.mark.parametrize("command", ["up", "plan"])
def test_a_name_that_no_file_can_have(says: Says, command: str) -> None:
    done = _run((command, "x" * 300))
    assert (done.exit_code, "[C101]" in done.output) == (2, True), done.output


@pytest.mark.parametrize("command", ["up", "plan"])
def test_a_folder_that_was_deleted(
    says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = _run((command, "../chain.yaml"))
    assert (done.exit_code, "[C101]" in done.output) == (2, True), done.output
    says([{"error": describe_error(MendHost("C300", f"{tmp_path}/x"))}])
    says_so = _run((command, f"{tmp_path}/chain.yaml"))
    assert f"[C300] {tmp_path}/x" in says_so.output
