"""Counts the filter's rows, all of them at once, to see which ports and scopes somebody changed.

The kernel tells nobody when a row of a map goes or changes. Reading all maps as they are and
comparing them with the last time costs 4 ms for 200 chains; what the rows mean is only looked at
where they differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chainctl.net import filter_rows as rows_of
from chainctl.net.filter import PanelFilter

_BY_PORT = ("port_map", "wire_map")
_TURNS = 2
"""Ends of wires and places for flows have to be asked for one by one: half of the ends each time,
the places every second time."""


@dataclass(frozen=True)
class Differences:
    ports: frozenset[int] = frozenset()
    """By the index of the link."""
    scopes: frozenset[int] = frozenset()


@dataclass
class Census:
    """Of one loaded filter; one thread at a time."""

    table: PanelFilter
    _rows: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    _far: dict[int, int | None] = field(default_factory=dict)
    _flows: frozenset[int] = frozenset()
    _classes: bool = True
    _turn: int = 0

    def take(self) -> Differences:
        """What differs from the last time; the first time everything does."""
        ports = {rows_of.to_number(key[:4]) for name in _BY_PORT for key in self._differing(name)}
        scopes = {
            rows_of.scope_of(name, key)
            for name in rows_of.POLICY_MAPS
            for key in self._differing(name)
        }
        turn, self._turn = self._turn, (self._turn + 1) % _TURNS
        if turn == 0:
            scopes |= self._places()
        return Differences(frozenset(ports | self._ends(turn)), frozenset(scopes))

    def _differing(self, name: str) -> set[bytes]:
        now, before = self.table.raw_rows(name), self._rows.get(name, (b"", b""))
        if now == before:
            return set()
        self._rows[name] = now
        old, new = (self.table.split_rows(name, rows) for rows in (before, now))
        changed = {key for key, value in new.items() if old.get(key) != value}
        return changed | (old.keys() - new.keys())

    def _ends(self, turn: int) -> set[int]:
        """Ports whose wire leads elsewhere than before."""
        keys, _ = self._rows.get("port_map", (b"", b""))
        ports = [rows_of.to_number(keys[at : at + 4]) for at in range(0, len(keys), 4)]
        found = self.table.far_of_each(ports[turn::_TURNS])
        changed = {port for port, far in found.items() if self._far.get(port, 0) != far}
        self._far.update(found)
        for gone in self._far.keys() - set(ports):
            del self._far[gone]
        return changed

    def _places(self) -> set[int]:
        """Scopes that got or lost a place for their flows; all of them if classes differ."""
        before, self._flows = self._flows, self.table.flow_scopes()
        whole, self._classes = self._classes, self.table.classes_whole()
        return set(before ^ self._flows) if whole == self._classes else set(self._flows)
