"""The driver for nft tables, and for our one rule in Docker's chain.

A table is changed by flushing and refilling it in one transaction: its chains and sets stay,
so nothing passes and nothing is lost in between. Only where its chains differ (an exit hop that
becomes a middle one) it is deleted and made in one transaction. To see whether somebody
changed a table, the listing the kernel gave right after we wrote it is remembered as a hash, on
tmpfs; a lost hash only means that the table is written again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from chainctl.errors import ChainctlError
from chainctl.host import clock, nft
from chainctl.host.files import ensure_dir, names_in, write_atomic
from chainctl.host.netns import Namespaces
from chainctl.model.parts import HOST, DockerRule, NftTable, NsName
from chainctl.net.changes import Changes
from chainctl.net.gate import NftGate
from chainctl.net.generation import read_generation
from chainctl.net.guard import GATE_SET, TABLE, own_network_table

CHANGED = "(changed by somebody else)"
"""Stands for the rules of a table that are not the ones we wrote."""

_GATE = f"inet {TABLE} {GATE_SET}"
_DOCKER_CHAIN = "ip filter DOCKER-USER"


@dataclass(frozen=True)
class _Seen:
    inode: int | None
    count: int
    """Of changes to tables in the namespace before this one was listed."""
    generation: int | None
    """Of the namespace's tables, by then."""
    at: float
    listing: str | None
    """Its hash; None: there was no such table."""


class Tables:
    def __init__(self, namespaces: Namespaces, changes: Changes, memory: Path) -> None:
        """`memory`: directory for the hashes, gone after a reboot like the tables."""
        self._namespaces = namespaces
        self._changes = changes
        self._memory = memory
        self._gate = NftGate(namespaces, changes)
        self._seen: dict[tuple[NsName, str], _Seen] = {}
        self._docker_seen: tuple[int, list[dict[str, Any]]] = (-1, [])
        """The count of changes in the host's tables, and the rules of Docker's chain then."""
        ensure_dir(memory, 0o700)

    def take_over(self) -> None:
        """Nobody else writes from now on: what is half written was left by a crash."""
        for half_written in self._memory.glob(".*"):
            half_written.unlink()

    def write(self, part: NftTable) -> None:
        """Create or replace. Raises NftError C305; then the old rules stay in force."""
        name = f"inet {part.table}"
        before = self._remembered(part.ns, part.table).get("rules", "")
        clear = "flush" if _chains(before) == _chains(part.rules) else "delete"
        anew = f"table {name} {{\n{part.rules}\n}}\n"

        def write() -> str:
            try:
                nft.apply(f"add table {name}\n{clear} table {name}\n{anew}")
            except nft.NftError:
                # Chains that somebody else made under our names may hang where ours do not.
                nft.apply(f"add table {name}\ndelete table {name}\n{anew}")
            return nft.read_table("inet", part.table) or ""

        listing = self._namespaces.call(part.ns, write)
        remembered = {"rules": part.rules, "listing": _hash(listing)}
        write_atomic(self._file(part.ns, part.table), json.dumps(remembered).encode(), 0o600)

    def remove(self, part: NftTable) -> None:
        name = f"inet {part.table}"
        commands = f"add table {name}\ndelete table {name}\n"
        self._namespaces.call(part.ns, lambda: nft.apply(commands))
        self._file(part.ns, part.table).unlink(missing_ok=True)

    def read(self, ns: NsName, table: str) -> str:
        """As nft lists it; empty when there is none."""
        listing = self._namespaces.call(ns, partial(nft.read_table, "inet", table))
        return listing or ""

    def observe(
        self, places: Iterable[tuple[NsName, str]], *, oldest: float = math.inf
    ) -> Iterator[NftTable]:
        """The tables among `places` (namespace, table) that exist.

        A table is listed again when somebody was heard to change one there, or after `oldest`
        seconds, unless the kernel says that nobody did.
        """
        for ns, table in places:
            seen = self._look(ns, table, oldest)
            if seen.listing is None:
                continue
            remembered = self._remembered(ns, table)
            ours = remembered.get("listing") == seen.listing
            yield NftTable(ns, table, remembered["rules"] if ours else CHANGED)

    def _look(self, ns: NsName, table: str, oldest: float) -> _Seen:
        inode, now = self._namespaces.inode(ns), clock.boot_seconds()
        count = self._changes.count(ns, tables=True)
        known = self._seen.get((ns, table))
        if known is not None and (known.inode, known.count) != (inode, count):
            known = None
        if known is not None and now - known.at <= oldest:
            return known

        def look() -> _Seen:
            self._changes.follow(ns)
            # Before it is listed: what changes meanwhile makes the next one list it again.
            count, generation = self._changes.count(ns, tables=True), read_generation()
            if known is not None and generation == known.generation is not None:
                return replace(known, at=now)
            listing = nft.read_table("inet", table)
            hashed = None if listing is None else _hash(listing)
            return _Seen(inode, count, generation, now, hashed)

        seen = self._seen[ns, table] = self._namespaces.call(ns, look)
        return seen

    def open_gates(self, until_boot_ns: Sequence[tuple[NsName, int]]) -> list[ChainctlError | None]:
        """Let packets between LAN and chain pass until then, in each of these gateways; what kept
        one from being opened stands in its place.
        """
        return self._gate.open(until_boot_ns)

    def close_gate(self, gateway: NsName) -> None:
        """Nothing to do where there is no gateway, or no table: then nothing passes."""
        if self._namespaces.inode(gateway) is None:
            return
        with suppress(nft.NftError):
            self._namespaces.call(gateway, lambda: nft.apply(f"flush set {_GATE}\n"))

    def forget(self, ns: NsName) -> None:
        """The namespace is gone, and its tables with it."""
        for key in [key for key in self._seen if key[0] == ns]:
            del self._seen[key]
        for name in names_in(self._memory, f"{ns}@"):
            (self._memory / name).unlink(missing_ok=True)

    def tidy(self, chain: str, *, last: bool) -> None:
        """The chain is gone, and when it was the `last` the panel as well: no hash is left."""
        for path in self._memory.glob("[!.]*"):
            ns, _, table = path.name.partition("@")
            mine = (f"{TABLE}-{chain}", own_network_table(chain))
            if last or ns.startswith(f"{chain}.") or (ns == HOST and table in mine):
                path.unlink()

    def make_docker_rule(self, part: DockerRule) -> None:
        self.remove_docker_rule(part)
        rules = [
            f'insert rule {_DOCKER_CHAIN} {way} "{part.link}" accept comment "{_comment(part)}"\n'
            for way in ("iifname", "oifname")
        ]
        self._namespaces.call(HOST, lambda: nft.apply("".join(rules)))

    def remove_docker_rule(self, part: DockerRule) -> None:
        handles = [rule["handle"] for rule in self._docker_rules(part)]
        commands = "".join(f"delete rule {_DOCKER_CHAIN} handle {handle}\n" for handle in handles)
        if commands:
            self._namespaces.call(HOST, lambda: nft.apply(commands))

    def observe_docker_rule(self, link: str) -> DockerRule | None:
        part = DockerRule(link)
        count = self._changes.count(HOST, tables=True)
        if self._docker_seen[0] != count:
            # Counted before it is listed, as for a table.
            self._docker_seen = count, self._docker_chain()
        return part if len(_of(part, self._docker_seen[1])) == 2 else None

    def _docker_rules(self, part: DockerRule) -> list[dict[str, Any]]:
        return _of(part, self._docker_chain())

    def _docker_chain(self) -> list[dict[str, Any]]:
        try:
            answer = self._namespaces.call(
                HOST, lambda: nft.read_json(f"list chain {_DOCKER_CHAIN}")
            )
        except nft.NftError:
            return []  # There is no Docker, or it does not use nftables.
        return [item["rule"] for item in answer["nftables"] if "rule" in item]

    def _remembered(self, ns: NsName, table: str) -> dict[str, str]:
        try:
            remembered: dict[str, str] = json.loads(self._file(ns, table).read_bytes())
        except (OSError, ValueError):
            return {}
        return remembered

    def _file(self, ns: NsName, table: str) -> Path:
        return self._memory / f"{ns}@{table}"


def _chains(rules: str) -> list[tuple[str, ...]]:
    """Name and place of each chain; the kernel keeps both for the chain's life."""
    return re.findall(r"chain (\S+) \{\s+(type [^;]+;)", rules)


def _of(part: DockerRule, rules: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rule for rule in rules if rule.get("comment") == _comment(part)]


def _comment(part: DockerRule) -> str:
    return f"chainctl {part.link}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
