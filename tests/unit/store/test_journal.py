"""The journal: wishes survive a power cut, events have no gap, a damaged file is said."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chainctl.errors import MendHost
from chainctl.model.event import Event
from chainctl.store.journal import Journal

_WRITER = """
import sys
from pathlib import Path
from chainctl.model.event import Event
from chainctl.store.journal import Journal

journal = Journal(Path(sys.argv[1]))
for number in range(1_000_000):
    journal.append(Event("counted", "home", str(number)))
    if number % 100 == 0:
        journal.want(f"chain{number}", up=True, file=Path("/etc/chain.yaml"))
        print(number, flush=True)
"""


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from chainctl.errors import MendHost
from chainctl.model.event import Event
from chainctl.store.journal import Journal

journal = Journal(Path(sys.argv[1]))
journal.append(Event("before", "home", ""))
journal.flush()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
refused = 0
while not refused:
    journal.append(Event("during", "home", "x" * 50_000))
    try:
        journal.flush()
    except MendHost as error:
        refused += error.code == "C512"
resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
try:
    journal.want("home", up=True)
except MendHost as error:
    refused += error.code == "C512"
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append(Event("after", "home", ""))
journal.flush()
journal.close()
print(refused)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def _again(journal: Journal, path: Path) -> Journal:
    journal.close()
    return Journal(path)


@pytest.mark.parametrize("wishes", [1, 4, 9])
def test_a_killed_writer_loses_no_wish_and_leaves_no_gap(path: Path, wishes: int) -> None:
    """What `want` returned from is there; of the events a prefix, in order."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(wishes)]
        os.kill(writer.pid, signal.SIGKILL)
    journal = Journal(path)
    try:
        known = {chain.name for chain in journal.chains()}
        assert {f"chain{number}" for number in said} <= known
        recorded = journal.events(limit=1_000_000)
        assert [entry.seq for entry in recorded] == list(range(1, len(recorded) + 1))
        assert [entry.event.text for entry in recorded] == [str(n) for n in range(len(recorded))]
        journal.append(Event("counted", "home", "after"))
        journal.flush()
        assert journal.events()[-1].seq == len(recorded) + 1
    finally:
        journal.close()


def test_wishes_are_kept_and_changed_one_by_one(journal: Journal, path: Path) -> None:
    journal.want("home", file=Path("/etc/home.yaml"), up=True)
    journal.want("home", closed=True)
    journal = _again(journal, path)
    wanted = journal.chain("home")
    assert wanted is not None
    assert (wanted.file, wanted.up, wanted.closed) == (Path("/etc/home.yaml"), True, True)
    assert not journal.want("home", up=False).up
    assert journal.chain("away") is None
    journal.close()


def test_numbers_are_the_lowest_free_ones_and_stay(journal: Journal) -> None:
    names = ["a", "b", "c"]
    assert [journal.want(name, up=True).number for name in names] == [0, 1, 2]
    journal.forget("b")
    assert journal.want("d", up=True).number == 1
    assert journal.want("c", closed=True).number == 2


def test_a_number_that_is_asked_for_is_given(journal: Journal) -> None:
    """The kernel may hold remains of chain 0 that the journal knows nothing of."""
    assert journal.want("home", up=True, number=5).number == 5
    assert journal.want("home", number=7).number == 5
    assert journal.want("away", number=5).number != 5


def test_memory_belongs_to_a_chain_and_goes_with_it(journal: Journal) -> None:
    journal.remember("home", "selection", {"guard": "ch-zrh-01"})
    journal.remember("away", "path_mtu", 1492)
    assert journal.recall("home", "selection") == {"guard": "ch-zrh-01"}
    assert journal.recall("home", "path_mtu", 1500) == 1500
    journal.append(Event("chain_down", "home", "the chain is down"))
    journal.forget("home")
    assert journal.recall("home", "selection") is None
    assert journal.recall("away", "path_mtu") == 1492
    journal.flush()
    assert [entry.event.kind for entry in journal.events("home")] == ["chain_down"]


def test_events_come_back_as_they_were(journal: Journal) -> None:
    event = Event("step_failed", "home", "wörds\n", "guard", "C410", {"still_blocked": True})
    journal.append(event)
    journal.append(Event("gate_closed", "away", "shut"))
    journal.flush()
    (recorded,) = journal.events("home")
    assert recorded.event == event
    assert recorded.at > recorded.boot > 0
    assert [entry.seq for entry in journal.events(after=1)] == [2]
    assert [entry.seq for entry in journal.events(limit=1)] == [2]


def test_close_has_the_last_events_on_disk(journal: Journal, path: Path) -> None:
    for number in range(500):
        journal.append(Event("counted", "home", str(number)))
    journal = _again(journal, path)
    assert len(journal.events()) == 500
    journal.close()


def test_many_threads_at_once(journal: Journal) -> None:
    def work(me: int) -> None:
        for number in range(50):
            journal.append(Event("counted", f"chain{me}", str(number)))
            journal.remember(f"chain{me}", "last", number)
        journal.want(f"chain{me}", up=True)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.flush()
    assert sorted(chain.number for chain in journal.chains()) == list(range(8))
    assert [entry.seq for entry in journal.events()] == list(range(1, 401))
    for me in range(8):
        texts = [entry.event.text for entry in journal.events(f"chain{me}")]
        assert texts == [str(number) for number in range(50)]
        assert journal.recall(f"chain{me}", "last") == 49


def test_a_damaged_file_is_said(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"SQLite format 3\0" + b"not really" * 1000)
    with pytest.raises(MendHost) as caught:
        Journal(path)
    assert caught.value.code == "C510"
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert path.read_bytes().endswith(b"not really"), "never repaired behind one's back"


def test_damage_found_late_is_said(journal: Journal, path: Path) -> None:
    """Opening reads the first page alone."""
    journal.want("home", up=True)
    journal.append(Event("chain_up", "home", ""))
    journal.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with closing(Journal(path)) as damaged:
        for read in (damaged.chains, damaged.events, lambda: damaged.recall("home", "since")):
            with pytest.raises(MendHost) as caught:
                read()
            assert caught.value.code == "C510"
            assert str(path) in caught.value.message


def test_a_journal_of_a_newer_chainctl_is_left_alone(journal: Journal, path: Path) -> None:
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(MendHost) as caught:
        Journal(path)
    assert caught.value.code == "C511"


def test_a_full_disk_is_said_and_loses_nothing_that_comes_after(path: Path) -> None:
    """Files may not grow, as on a full disk; nobody waits for ever, then all is written."""
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("2", "")
    journal = Journal(path)
    kinds = [entry.event.kind for entry in journal.events()]
    assert kinds == ["before", *["during"] * (len(kinds) - 2), "after"]
    assert len(kinds) > 2
    journal.close()


def test_closed_beside_others_that_read(path: Path) -> None:
    """In a process of its own: without the lock it ends by SIGSEGV (CPython 3.11)."""
    program = """
import sys, threading
from pathlib import Path
from chainctl.errors import MendHost
from chainctl.store.journal import Journal

def read(journal):
    begun.wait()
    try:
        while True:
            journal.chain("home")
    except MendHost as error:
        codes.append(error.code)

codes = []
for number in range(50):
    journal, begun = Journal(Path(sys.argv[1])), threading.Barrier(5)
    readers = [threading.Thread(target=read, args=(journal,)) for _ in range(4)]
    for reader in readers:
        reader.start()
    begun.wait()
    journal.close()
    for reader in readers:
        reader.join()
assert codes == ["C510"] * 200, codes
"""
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)


def test_closed_twice(journal: Journal) -> None:
    journal.close()
    journal.close()


def test_nobody_else_may_read_it(journal: Journal, path: Path) -> None:
    assert path.parent.stat().st_mode & 0o077 == 0


def test_what_another_process_writes_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path)) as journal, closing(Journal(path)) as other:
        journal.want("home", file=Path("/etc/chain.yaml"), up=True)
        journal.remember("home", "names", {"a": 1})
        assert not journal.chains()[0].closed
        other.want("home", closed=True)
        other.remember("home", "names", {"a": 2})
        wanted = journal.chain("home")
        assert wanted is not None
        assert wanted.closed
        assert journal.recall("home", "names") == {"a": 2}
        other.forget("home")
        assert journal.chain("home") is None
        assert journal.recall("home", "names") is None


def test_what_is_recalled_belongs_to_the_caller(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        journal.remember("home", "names", {"a": 1})
        journal.recall("home", "names").clear()
        assert journal.recall("home", "names") == {"a": 1}
