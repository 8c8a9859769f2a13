"""Which chains it is that something changed of: from what the kernel tells, and what is counted.

The machine asks every second or two, or when the kernel has told something.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from chainctl.host.netns import Namespaces
from chainctl.model.chain import client_bridge
from chainctl.model.parts import HOST, PANEL
from chainctl.net import guard, libbpf
from chainctl.net.census import Census
from chainctl.net.changes import Changes, Touched
from chainctl.net.filter import PanelFilter
from chainctl.net.links import Links
from chainctl.net.links_seen import BRIDGE_PORT

_Names: TypeAlias = frozenset[str]
_NUMBERED = re.compile(r"c(?:hain)?(\d+)(?:-.*)?")
"""Ports of the panel and legs of the host: `c7-h1in`, `chain7`."""


class News:
    """`numbers`, everywhere: the names of the chains by their numbers. One thread at a time."""

    def __init__(self, namespaces: Namespaces, links: Links, changes: Changes) -> None:
        self._namespaces = namespaces
        self._links = links
        self._changes = changes
        self._census: Census | None = None
        self._newest_program = 0

    def of_changes(self, numbers: Mapping[int, str], *, pins: bool) -> _Names | None:
        """What was heard; None: anything. `pins`: look whether pins are still there, too."""
        touched = self._changes.take()
        if touched is None:
            return None
        if pins:
            touched |= {Touched(ns, "") for ns in self._changes.lost()}
        found = set()
        for each in touched:
            names = chains_of(each, numbers)
            if names is None:
                return None
            found |= names
        return frozenset(found)

    def of_rows(self, table: PanelFilter, numbers: Mapping[int, str]) -> _Names:
        """Rows of the filter that changed, and programs that judge before it."""
        if self._census is None or self._census.table is not table:
            self._census = Census(table)
        different = self._census.take()
        newest = libbpf.newest_program(self._newest_program)
        if not different.ports and not different.scopes and newest == self._newest_program:
            return frozenset()
        ports = {
            link.index: found
            for link in self._links.sight(PANEL).links
            if (found := _numbered(link.name, numbers)) is not None
        }
        names = {ports[index] for index in different.ports if index in ports}
        names |= {numbers[scope - 1] for scope in different.scopes if scope - 1 in numbers}
        if newest != self._newest_program:
            # Nobody tells that a program of TCX was attached, but it has to be loaded first.
            self._newest_program = newest
            names |= self._namespaces.call(
                PANEL, lambda: {ports[index] for index in ports if _has_tcx(index)}
            )
        return frozenset(names)


def chains_of(touched: Touched, numbers: Mapping[int, str]) -> set[str] | None:
    """None: all of them may be meant."""
    ns, what = touched
    if ns not in (HOST, PANEL):
        return {ns.partition(".")[0]}
    name = _numbered(what, numbers)
    if name is not None:
        return {name}
    if ns == PANEL and what in ("", guard.TABLE):
        return None
    if ns == HOST:
        return _chains_at_host(what, numbers)
    return set()


def _chains_at_host(what: str, numbers: Mapping[int, str]) -> set[str]:
    """Most of what happens there is none of our business."""
    if what == "filter":
        return set(numbers.values())  # Docker's table, which has rules of ours.
    if what.startswith(BRIDGE_PORT):
        return set(numbers.values())  # A gateway's; whose, the name does not say.
    return {
        name
        for name in numbers.values()
        if what in (f"{guard.TABLE}-{name}", guard.own_network_table(name), client_bridge(name))
    }


def _numbered(link: str, numbers: Mapping[int, str]) -> str | None:
    match = _NUMBERED.fullmatch(link)
    return numbers.get(int(match[1])) if match else None


def _has_tcx(index: int) -> bool:
    return bool(libbpf.tcx_programs(index, libbpf.INGRESS))
