"""YAML 1.2 text to plain values, with the place of each of them.

Built on ruamel's events, not on its constructors: those say where things are only half of
the time, recurse as deep as the file asks them to, and take `country: no` for False when
the file asks for YAML 1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from chainctl.spec.words import quote

PathInFile: TypeAlias = tuple[str | int, ...]


class Place(NamedTuple):
    """Both count from 1."""

    line: int
    column: int


_DEEPEST = 16
"""A chain file needs five levels; ruamel's scanner takes minutes over thousands of brackets."""


class Flaw(NamedTuple):
    place: Place
    code: str
    message: str


@dataclass
class Document:
    value: Any = None
    places: dict[PathInFile, Place] = field(default_factory=dict)
    """Of every value; of one that is missing (`key:` and nothing), the key's."""
    keys: dict[PathInFile, Place] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)

    def place(self, path: PathInFile) -> Place:
        """Of the value at `path`, or of the nearest one around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))

    def key_place(self, path: PathInFile) -> Place:
        return self.keys.get(path) or self.place(path)


def parse_yaml(text: str) -> Document:
    """Read `text`. With `flaws` the value is what could be understood, None when nothing."""
    document = Document()
    unprintable = re.search(
        r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text
    )
    if unprintable:
        before = text[: unprintable.start()]
        place = Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        words = f"a character that no YAML file contains (U+{ord(unprintable[0]):04X})"
        document.flaws.append(Flaw(place, "C102", f"{words}; is this a text file?"))
        return document
    try:
        _Builder(document).build(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        document.flaws.append(Flaw(place, "C102", _syntax_words(error)))
        document.value = None
    except YAMLError as error:
        document.flaws.append(Flaw(Place(1, 1), "C102", f"not YAML: {error}"))
        document.value = None
    return document


def _syntax_words(error: MarkedYAMLError) -> str:
    problem = error.problem or str(error)
    if r"'\t'" in problem:
        return "a tab: YAML is indented with spaces only"
    if "mapping values are not allowed" in problem:
        return (
            "`: ` is not expected here: is the line indented like the one above, "
            "and is a value that contains `: ` in quotes?"
        )
    if "flow" in (error.context or "") and error.context_mark:
        return f"is the bracket closed that begins in line {error.context_mark.line + 1}?"
    if "<block" in problem:
        return "the indentation does not fit the lines above"
    return f"not YAML: {problem}"


@dataclass
class _Open:
    """A mapping or sequence that has begun; `key` is the one whose value comes next."""

    into: dict[str, Any] | list[Any]
    path: PathInFile
    anchor: str | None
    key: str | None = None
    key_place: Place | None = None


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.stack: list[_Open] = []
        self.anchors: dict[str, Any] = {}
        self.documents = 0

    def build(self, text: str) -> None:
        for event in YAML(typ="rt", pure=True).parse(text):
            match event:
                case DocumentStartEvent():
                    self._begin_document(event)
                case MappingStartEvent() | SequenceStartEvent() if len(self.stack) == _DEEPEST:
                    self._flaw(event, "C108", "nested too deep for a chain file")
                    self.document.value = None
                    return
                case MappingStartEvent():
                    self._begin({}, event)
                case SequenceStartEvent():
                    self._begin([], event)
                case MappingEndEvent() | SequenceEndEvent():
                    self._end()
                case ScalarEvent():
                    self._scalar(event)
                case AliasEvent():
                    self._alias(event)

    def _begin_document(self, event: Any) -> None:
        self.documents += 1
        if self.documents == 2:
            self._flaw(event, "C108", "a second document: a chain file holds one chain")
        if event.version and event.version != (1, 2):
            self._flaw(event, "C108", "the file asks for an older YAML; remove the line `%YAML`")

    def _begin(self, into: dict[str, Any] | list[Any], event: Any) -> None:
        if event.ctag is not None:
            self._flaw(event, "C108", f"the tag {quote(event.tag)} has no meaning here")
        if self._awaits_key():
            self._flaw(event, "C107", "a key must be a word")
        path = self._put(into, event)
        self.stack.append(_Open(into, path, event.anchor))

    def _end(self) -> None:
        closed = self.stack.pop()
        if closed.anchor:
            # Only now: an alias inside of what it names would be a value without end.
            self.anchors[closed.anchor] = closed.into

    def _alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            self._flaw(
                event,
                "C108",
                "a word that begins with `*` repeats what `&` has named, and nothing is named "
                f"{quote(event.anchor)}; a pattern needs quotes, or `./` before it",
            )
        self._put(self.anchors.get(event.anchor), event)

    def _scalar(self, event: Any) -> None:
        tag = event.tag
        if tag is not None and tag not in ("!", "tag:yaml.org,2002:str"):
            self._flaw(event, "C108", f"the tag {quote(tag)} has no meaning here")
        plain = event.style is None and tag is None
        value = _resolve(event.value) if plain else event.value
        self._put(value, event, missing=plain and event.value == "")
        if event.anchor:
            self.anchors[event.anchor] = value

    def _awaits_key(self) -> bool:
        top = self.stack[-1] if self.stack else None
        return top is not None and isinstance(top.into, dict) and top.key is None

    def _put(self, value: Any, event: Any, *, missing: bool = False) -> PathInFile:
        """Put a value where it belongs; the path it got."""
        place = _place(event)
        if not self.stack:
            if self.documents == 1:
                self.document.value = value
                self.document.places[()] = place
            return ()
        top = self.stack[-1]
        if isinstance(top.into, list):
            path = (*top.path, len(top.into))
            top.into.append(value)
        elif top.key is None:
            top.key = str(event.value) if isinstance(event, ScalarEvent) else str(value)
            top.key_place = place
            return top.path
        else:
            path = (*top.path, top.key)
            if top.key in top.into:
                first = self.document.keys[path].line
                self._flaw(
                    top.key_place or place,
                    "C103",
                    f"{quote(top.key)} stands here a second time, first in line {first}",
                )
            else:
                top.into[top.key] = value
                self.document.keys.setdefault(path, top.key_place or place)
            place = top.key_place if missing and top.key_place else place
            top.key = None
        self.document.places.setdefault(path, place)
        return path

    def _flaw(self, at: Event | Place, code: str, message: str) -> None:
        place = at if isinstance(at, Place) else _place(at)
        self.document.flaws.append(Flaw(place, code, message))


def _place(event: Event) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _resolve(word: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2 (section 10.3.2): `no` is a word."""
    if word in ("", "~", "null", "Null", "NULL"):
        return None
    if word in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return word.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]{1,30}", word):
        return int(word)
    if re.fullmatch(r"0o[0-7]{1,30}", word):
        return int(word[2:], 8)
    if re.fullmatch(r"0x[0-9a-fA-F]{1,30}", word):
        return int(word[2:], 16)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", word):
        return float(word)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)", word):
        return float(word.replace(".", ""))
    if word in (".nan", ".NaN", ".NAN"):
        return float("nan")
    return word
