"""The text of a wg-quick file: its sections and settings, with the place of each.

The one door to wgconfig, which takes values apart. It is shown one setting at a time, because
it merges `[Peer]` sections with the same key without a word, and without comments, because it
takes `#! PostUp = …` for a setting. Lines and keys are found here as wg-quick(8) finds them:
lines end with a line feed, `#` begins a comment everywhere, names of sections and settings
may be in any letter case.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from wgconfig import WGConfig

from chainctl.spec.words import quote
from chainctl.spec.yaml_text import Flaw, Place

LONGEST_LINE = 4096
"""Characters; lists of allowed networks reach 2 000."""


@dataclass
class Setting:
    """All lines of one key in one section."""

    key: str
    """In small letters."""
    written: str
    """As in the file."""
    key_places: list[Place] = field(default_factory=list)
    """One for each line."""
    entries: list[tuple[str, Place]] = field(default_factory=list)
    """The values, split at commas, each with the place where the values of its line begin."""

    @property
    def line(self) -> int:
        return self.key_places[0].line


@dataclass
class Section:
    name: str
    """`interface` or `peer`."""
    place: Place
    settings: dict[str, Setting] = field(default_factory=dict)


def parse_wgquick(text: str) -> tuple[list[Section], list[Flaw]]:
    """Sections in the order of the file, and what is no such text in it."""
    sections: list[Section] = []
    flaws: list[Flaw] = []
    lost = False
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.removesuffix("\r").partition("#")[0]
        strange = re.search(r"[^\t\x20-\x7e]", content)
        if strange or len(content) > LONGEST_LINE:
            flaws.append(_strange_line(number, content, strange))
        clean = re.sub(r"[^\t\x20-\x7e]", "", content)
        indent = len(content) - len(content.lstrip())
        stripped = clean.strip()
        if not stripped or len(content) > LONGEST_LINE:
            continue
        place = Place(number, indent + 1)
        if stripped.startswith("["):
            name = stripped[1:-1].lower() if stripped.endswith("]") else ""
            lost = name not in ("interface", "peer")
            if lost:
                words = f"the section {show(stripped)} is unknown; expected [Interface] or [Peer]"
                flaws.append(Flaw(place, "C202", words))
            else:
                sections.append(Section(name, place))
        elif "=" not in stripped:
            words = f"expected a setting such as `MTU = 1420`, found {show(stripped)}"
            flaws.append(Flaw(place, "C202", words))
        elif sections and not lost:
            _add_setting(sections[-1], clean, place)
        elif not lost:
            flaws.append(Flaw(place, "C202", "a setting before the first section [Interface]"))
    return sections, flaws


def _strange_line(number: int, content: str, strange: re.Match[str] | None) -> Flaw:
    if strange is None:
        words = f"a line of {len(content)} characters; the longest allowed is {LONGEST_LINE}"
        return Flaw(Place(number, LONGEST_LINE + 1), "C215", words)
    place = Place(number, strange.start() + 1)
    if strange[0] == "\0":
        return Flaw(place, "C215", "a NUL character; save the file as UTF-8 text")
    character = f"U+{ord(strange[0]):04X}"
    return Flaw(place, "C215", f"the character {character} is not allowed outside of comments")


def show(written: str) -> str:
    """What stands there, unless it could be a key that got into the wrong place."""
    return (
        "a text not shown here, it may be a secret"
        if re.search(r"[A-Za-z0-9+/]{40}", written)
        else quote(written)
    )


def _add_setting(section: Section, line: str, key_place: Place) -> None:
    written, _, value = line.partition("=")
    written = written.strip()
    setting = section.settings.setdefault(written.lower(), Setting(written.lower(), written))
    setting.key_places.append(key_place)
    place = Place(key_place.line, len(line) - len(value.lstrip()) + 1)
    setting.entries.extend((item, place) for item in _split(value))


def _split(value: str) -> Iterator[str]:
    config = WGConfig()
    config.read_from_fileobj(io.StringIO(f"[Interface]\nvalue = {value}\n"))
    items = config.get_interface().get("value", [])
    for item in items if isinstance(items, list) else [items]:
        yield str(item)
