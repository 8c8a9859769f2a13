"""The servers of an account: a CSV file, one server a line, as providers list them.

The first line names the columns: `name,endpoint,public_key`, and any of `country`, `city`,
`operator` and `asn`. Lines that begin with `#` are comments. There is no quoting: no value
contains a comma.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chainctl.errors import Complaint, MendFile
from chainctl.spec.labels import KEYS, labels_from, parse_label
from chainctl.spec.model import Endpoint, Labels
from chainctl.spec.small_file import UnreadableFile, read_small_file
from chainctl.spec.wgquick import show
from chainctl.spec.wireguard_profile import parse_endpoint, parse_key
from chainctl.spec.words import nearest
from chainctl.spec.yaml_text import Place

LARGEST = 256 * 1024
"""Bytes."""
MOST_SERVERS = 1000
"""More is the list of a whole provider, to be cut down to what a hop should use."""

_REQUIRED = ("name", "endpoint", "public_key")
_COLUMNS = (*_REQUIRED, *KEYS)


@dataclass(frozen=True)
class ListedServer:
    name: str
    endpoint: Endpoint
    public_key: str
    labels: Labels
    """As written in the list."""


def load_server_list(path: Path) -> tuple[ListedServer, ...]:
    """Read a list; raises MendFile with all complaints about it."""
    try:
        text = read_small_file(path, LARGEST).decode("utf-8-sig")
    except UnreadableFile as error:
        raise MendFile.of([Complaint(str(path), 1, 1, "C216", str(error))]) from None
    except UnicodeDecodeError:
        words = "is not a text file (UTF-8 was expected)"
        raise MendFile.of([Complaint(str(path), 1, 1, "C216", words)]) from None
    return parse_server_list(text, path)


def parse_server_list(text: str, path: Path) -> tuple[ListedServer, ...]:
    """As `load_server_list`, with the text at hand."""
    reader = _Reader(path)
    servers = reader.read(text)
    if reader.complaints:
        raise MendFile.of(reader.complaints)
    return tuple(servers)


class _Cell(NamedTuple):
    word: str
    place: Place


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.complaints: list[Complaint] = []

    def complain(self, place: Place, code: str, message: str) -> None:
        self.complaints.append(Complaint(str(self.path), *place, code, message))

    def read(self, text: str) -> list[ListedServer]:
        rows = _rows(text)
        header = next(rows, None)
        if header is None:
            words = f"the list is empty; its first line is `{','.join(_REQUIRED)}`"
            self.complain(Place(1, 1), "C216", words)
            return []
        if not self.check_header(header):
            return []
        columns = [cell.word.lower() for cell in header]
        lines: dict[str, int] = {}
        servers = []
        for count, row in enumerate(rows, start=1):
            if count > MOST_SERVERS:
                words = f"more than {MOST_SERVERS} servers; leave those that the hop should use"
                self.complain(row[0].place, "C216", words)
                break
            server = self.server(columns, row)
            if server is None:
                continue
            if server.name in lines:
                words = f"{show(server.name)} stands here a second time, first in line "
                self.complain(row[0].place, "C219", f"{words}{lines[server.name]}")
            lines.setdefault(server.name, row[0].place.line)
            servers.append(server)
        if not lines and not self.complaints:
            self.complain(header[0].place, "C216", "there is no server below the first line")
        return servers

    def check_header(self, header: list[_Cell]) -> bool:
        columns = [cell.word.lower() for cell in header]
        for number, (word, cell) in enumerate(zip(columns, header, strict=True)):
            if word not in _COLUMNS:
                meant = nearest(word, _COLUMNS) or f" Expected some of `{','.join(_COLUMNS)}`."
                self.complain(cell.place, "C216", f"unknown column: {show(cell.word)}.{meant}")
            elif word in columns[:number]:
                self.complain(cell.place, "C216", f"a second column `{word}`")
        for word in _REQUIRED:
            if word not in columns:
                words = f"the first line names no column `{word}`"
                self.complain(header[0].place, "C216", words)
        return not self.complaints

    def server(self, columns: list[str], row: list[_Cell]) -> ListedServer | None:
        if len(row) > len(columns):
            words = f"{len(row)} values, and the first line names {len(columns)} columns"
            self.complain(row[len(columns)].place, "C217", words)
            return None
        cells = dict(zip(columns, row, strict=False))
        before = len(self.complaints)
        for column in _REQUIRED:
            if column not in cells or not cells[column].word:
                place = cells.get(column, row[-1]).place
                self.complain(place, "C217", f"the {column.replace('_', ' ')} is missing")
        values = {column: self.value(column, cell) for column, cell in cells.items() if cell.word}
        if len(self.complaints) > before:
            return None
        return ListedServer(
            values["name"], values["endpoint"], values["public_key"], labels_from(values)
        )

    def value(self, column: str, cell: _Cell) -> Any:
        code, parse = _PARSERS[column]
        try:
            return parse(cell.word)
        except ValueError as error:
            self.complain(cell.place, code, f"{column.replace('_', ' ')}: {error}")
            return None


def _rows(text: str) -> Iterator[list[_Cell]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        row = []
        column = 1
        for part in line.split(","):
            indent = len(part) - len(part.lstrip())
            row.append(_Cell(part.strip(), Place(number, column + indent)))
            column += len(part) + 1
        yield row


def _name(word: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._#-]{0,63}", word):
        raise ValueError(f"expected up to 64 of A-Z a-z 0-9 . _ # -, found {show(word)}")
    return word


_PARSERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "name": ("C218", _name),
    "endpoint": ("C208", parse_endpoint),
    "public_key": ("C204", parse_key),
} | {key: ("C218", functools.partial(parse_label, key)) for key in KEYS}
"""By column: the code of its complaints, and what reads a value or raises ValueError."""
