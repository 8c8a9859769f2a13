"""Which autonomous system announces an address: a table the user supplies, nothing is asked.

One prefix and its number a line, `192.0.2.0/24,64500`, as such tables are published; more
columns, IPv6 prefixes, empty lines, and lines that begin with `#` are passed over, and so is a
first line of words. The longest prefix that contains an address counts, as in routing.
"""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from chainctl.errors import Complaint, MendFile
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.wgquick import show

LARGEST = 64 * 1024 * 1024
"""Bytes: the whole internet's table has some 25 million."""
_MOST_COMPLAINTS = 10
"""A file that is something else would have one for each line."""
_LARGEST_ASN = (1 << 32) - 1


@dataclass(frozen=True)
class AsnTable:
    """Ranges that do not overlap, 8 bytes each; 0 stands for no system."""

    starts: array[int] = field(default_factory=lambda: array("I"))
    """First addresses, rising."""
    numbers: array[int] = field(default_factory=lambda: array("I"))

    def lookup(self, address: IPv4Address) -> int | None:
        """None: the table does not know."""
        place = bisect_right(self.starts, int(address)) - 1
        return (self.numbers[place] or None) if place >= 0 else None


NO_TABLE = AsnTable()


def load_asn_table(path: Path) -> AsnTable:
    """Read a table, once as long as the file stays as it is. Raises MendFile with the first
    complaints about it.
    """
    try:
        seen = path.stat()
        return _load(path, seen.st_mtime_ns, seen.st_size)
    except OSError as error:
        words = f"cannot be read: {error.strerror}"
        raise MendFile.of([Complaint(str(path), 1, 1, "C139", words)]) from None


@functools.lru_cache(maxsize=1)
def _load(path: Path, _changed: int, _size: int) -> AsnTable:
    try:
        text = read_small_file(path, LARGEST).decode("utf-8-sig")
    except UnreadableFile as error:
        raise MendFile.of([Complaint(str(path), 1, 1, "C139", str(error))]) from None
    except UnicodeDecodeError:
        words = "is not a text file (UTF-8 was expected)"
        raise MendFile.of([Complaint(str(path), 1, 1, "C139", words)]) from None
    return parse_asn_table(text, path)


def parse_asn_table(text: str, path: Path) -> AsnTable:
    """As `load_asn_table`, with the text at hand."""
    complaints: list[Complaint] = []
    entries = sorted(_entries(text, path, complaints))
    if complaints:
        raise MendFile.of(complaints)
    return flatten(entries)


def flatten(entries: Iterable[tuple[int, int, int]]) -> AsnTable:
    """From (first address, prefix length, number), sorted: prefixes contain or avoid each
    other, so that a stack of those that are open is enough.
    """
    table = AsnTable(array("I"), array("I"))
    opened: list[tuple[int, int]] = []
    """(first address behind it, number)"""
    for start, length, number in entries:
        while opened and opened[-1][0] <= start:
            end, _ = opened.pop()
            _begin(table, end, opened[-1][1] if opened else 0)
        _begin(table, start, number)
        opened.append((start + (1 << (32 - length)), number))
    while opened:
        end, _ = opened.pop()
        _begin(table, end, opened[-1][1] if opened else 0)
    return table


def _begin(table: AsnTable, start: int, number: int) -> None:
    """From `start` on it is this number; what began there before gives way."""
    if start >= 1 << 32:
        return
    if table.starts and table.starts[-1] == start:
        table.numbers[-1] = number
        return
    table.starts.append(start)
    table.numbers.append(number)


def _entries(text: str, path: Path, complaints: list[Complaint]) -> Iterator[tuple[int, int, int]]:
    first = True
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        prefix, _, rest = line.partition(",")
        if first and not any(sign.isdigit() for sign in prefix):
            first = False
            continue
        first = False
        if ":" in prefix:
            continue
        try:
            yield (*_parse_prefix(prefix.strip()), _parse_asn(rest.partition(",")[0].strip()))
        except ValueError as error:
            complaints.append(Complaint(str(path), number, 1, "C139", str(error)))
            if len(complaints) == _MOST_COMPLAINTS:
                return


def _parse_prefix(word: str) -> tuple[int, int]:
    """By hand where it is plain: `IPv4Network` takes ten times as long, and there are a million."""
    try:
        address, length = word.split("/")
        parts = [int(part) for part in address.split(".")]
        start = int.from_bytes(bytes(parts), "big")
        bits = int(length)
        plain = len(parts) == 4 and 0 <= bits <= 32 and not start & ((1 << (32 - bits)) - 1)
    except ValueError:
        plain = False
    if plain:
        return start, bits
    try:
        network = IPv4Network(word)
    except ValueError:
        words = f"expected a prefix such as `192.0.2.0/24`, found {show(word)}"
        raise ValueError(words) from None
    return int(network.network_address), network.prefixlen


def _parse_asn(word: str) -> int:
    digits = word[2:] if word[:2].upper() == "AS" else word
    if digits.isascii() and digits.isdigit() and len(digits) <= 10:
        number = int(digits)
        if number <= _LARGEST_ASN:
            return number
    raise ValueError(f"expected the number of an autonomous system, found {show(word)}")
