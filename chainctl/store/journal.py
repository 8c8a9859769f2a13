"""The journal: what is wanted and what happened, in one SQLite file.

The kernel says what *is*; here stands only what cannot be read from it. Never a key, a
profile's text or a token. Wishes are on disk when the call returns (synchronous=FULL);
events are written by one thread in the order of their numbers, a batch a transaction.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from chainctl.errors import MendHost
from chainctl.host import clock
from chainctl.model.event import Event, Recorded

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE chain (
    name TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    file TEXT NOT NULL,
    up INTEGER NOT NULL,
    closed INTEGER NOT NULL
);
CREATE TABLE memory (
    chain TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (chain, key)
);
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    boot REAL NOT NULL,
    kind TEXT NOT NULL,
    chain TEXT NOT NULL,
    hop TEXT NOT NULL,
    code TEXT NOT NULL,
    text TEXT NOT NULL,
    facts TEXT NOT NULL
);
"""


_KEPT_IN_MEMORY = 10_000
"""Events that wait while the disk is full; the oldest of more are lost."""

_Row: TypeAlias = tuple[float, float, str, str, str, str, str, str]


@dataclass(frozen=True)
class Wanted:
    """What the user asked for. `file`: the chain file, absolute."""

    name: str
    number: int
    file: Path
    up: bool
    closed: bool


class Journal:
    """Safe to use from several threads. Close it to have the last events on disk."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises MendHost C510 when the file is damaged or from the future."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._path = path
        self._chains: dict[str, Wanted] | None = None
        self._memory: dict[tuple[str, str], str | None] = {}
        self._version = 0
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._prepare()
        except sqlite3.Error as error:
            raise self._unreadable(error) from None
        self._events: queue.Queue[tuple[float, float, Event] | threading.Event] = queue.Queue()
        self._stopped = False
        self._refused: MendHost | None = None
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """The second time nothing happens. Events that cannot be written are lost here."""
        if self._stopped:
            return
        with suppress(MendHost):
            self.flush()
        self._stopped = True
        self._events.put(threading.Event())
        self._writer.join()
        # sqlite3 does not look: a close beside another thread's query is a segmentation fault.
        with self._lock:
            self._db.close()

    def chains(self) -> list[Wanted]:
        return list(self._known().values())

    def chain(self, name: str) -> Wanted | None:
        return self._known().get(name)

    def want(
        self,
        name: str,
        *,
        file: Path | None = None,
        up: bool | None = None,
        closed: bool | None = None,
        number: int | None = None,
    ) -> Wanted:
        """Write a wish down. A chain not known yet gets `number`, or the lowest free one.

        Raises MendHost C512 when it cannot be written.
        """
        with self._transaction():
            known = self.chain(name)
            used = {chain.number for chain in self.chains()}
            if known is not None:
                number = known.number
            elif number is None or number in used:
                number = next(n for n in range(len(used) + 1) if n not in used)
            wanted = Wanted(
                name,
                number,
                file or (known.file if known else Path()),
                up if up is not None else bool(known and known.up),
                closed if closed is not None else bool(known and known.closed),
            )
            self._db.execute(
                "INSERT OR REPLACE INTO chain VALUES (?, ?, ?, ?, ?)",
                (name, wanted.number, str(wanted.file), wanted.up, wanted.closed),
            )
        return wanted

    def forget(self, name: str) -> None:
        """The chain is gone from the machine; its events stay."""
        with self._transaction():
            self._db.execute("DELETE FROM chain WHERE name = ?", (name,))
            self._db.execute("DELETE FROM memory WHERE chain = ?", (name,))

    def remember(self, chain: str, key: str, value: Any) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO memory VALUES (?, ?, ?)", (chain, key, json.dumps(value))
            )

    def recall(self, chain: str, key: str, default: Any = None) -> Any:
        with self._lock:
            self._known()
            if (chain, key) not in self._memory:
                rows = self._rows(
                    "SELECT value FROM memory WHERE chain = ? AND key = ?", chain, key
                )
                self._memory[chain, key] = rows[0][0] if rows else None
            value = self._memory[chain, key]
        return default if value is None else json.loads(value)

    def append(self, event: Event) -> None:
        """Returns at once; `flush` waits until it is on disk.

        While the disk is full the newest events wait for room in memory.
        """
        self._events.put((clock.wall_seconds(), clock.boot_seconds(), event))

    def flush(self) -> None:
        """Raises MendHost C512 when events cannot be written."""
        written = threading.Event()
        self._events.put(written)
        written.wait()
        if self._refused is not None:
            raise self._refused

    def events(self, chain: str = "", *, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """The newest `limit` events of a chain (of all: "") with numbers above `after`."""
        rows = self._rows(
            "SELECT seq, at, boot, kind, chain, hop, code, text, facts FROM event"
            " WHERE seq > ? AND (? = '' OR chain = ?) ORDER BY seq DESC LIMIT ?",
            after,
            chain,
            chain,
            limit,
        )
        return [
            Recorded(seq, at, boot, Event(kind, name, text, hop, code, json.loads(facts)))
            for seq, at, boot, kind, name, hop, code, text, facts in reversed(rows)
        ]

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise MendHost(
                "C511",
                f"the journal {self._path} was written by a newer chainctl",
                hint="install that version again, or move the file away",
            )
        if version < _SCHEMA_VERSION:
            self._db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
            )

    def _known(self) -> dict[str, Wanted]:
        """Chains by name. Every worker asks for its own again and again, so they are kept until
        somebody writes: this process, or another one, of which SQLite tells.
        """
        with self._lock:
            ((version,),) = self._rows("PRAGMA data_version")
            if self._chains is None or version != self._version:
                rows = self._rows(
                    "SELECT name, number, file, up, closed FROM chain ORDER BY number"
                )
                self._version = version
                self._memory.clear()
                self._chains = {
                    name: Wanted(name, number, Path(file), bool(up), bool(closed))
                    for name, number, file, up, closed in rows
                }
            return self._chains

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Raises MendHost C510: damage may show long after the file was opened."""
        try:
            with self._lock:
                return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: sqlite3.Error) -> MendHost:
        return MendHost(
            "C510",
            f"the journal {self._path} cannot be read: {error}",
            hint="move the file away; running chains are found again by what is in the kernel",
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._roll_back()
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise MendHost(
                    "C512",
                    f"the journal {self._path} cannot be written: {error}",
                    hint="make room on its file system",
                ) from error
            finally:
                self._chains = None

    def _roll_back(self) -> None:
        # SQLite has done so itself after a full disk.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _write(self) -> None:
        unwritten: deque[_Row] = deque(maxlen=_KEPT_IN_MEMORY)
        while not self._stopped:
            batch = [self._events.get()]
            while not self._events.empty():
                batch.append(self._events.get())
            unwritten.extend(_row(*item) for item in batch if isinstance(item, tuple))
            self._insert(unwritten)
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()

    def _insert(self, rows: deque[_Row]) -> None:
        """Afterwards `rows` holds what could not be written."""
        try:
            if rows:
                with self._transaction():
                    self._db.executemany(
                        "INSERT INTO event (at, boot, kind, chain, hop, code, text, facts)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        rows,
                    )
                rows.clear()
            self._refused = None
        except MendHost as error:
            self._refused = error


def _wanted(name: str, number: int, file: str, up: int, closed: int) -> Wanted:
    return Wanted(name, number, Path(file), bool(up), bool(closed))


def _row(at: float, boot: float, event: Event) -> _Row:
    facts = json.dumps(dict(event.facts))
    return at, boot, event.kind, event.chain, event.hop, event.code, event.text, facts
