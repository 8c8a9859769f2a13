"""Where a server stands and who runs it: from its name, and from what a person wrote.

A wrong label is worse than none: it would put an exit into the wrong country, or refuse a
server for what it is not. Names are therefore read only in the shapes that large providers
use, and `my-vpn-1` or `gw1` say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chainctl.spec.countries import COUNTRIES
from chainctl.spec.model import Labels
from chainctl.spec.wgquick import show
from chainctl.spec.yaml_text import Flaw, Place

KEYS = ("country", "city", "operator", "asn")

_SHAPES = (
    # ch-zrh-01, se_sto-wg-001
    re.compile("(?P<country>[a-z]{2})[-_](?P<city>[a-z]{3})([-_](wg|wireguard))?[-_]?[0-9]{1,4}"),
    # CH-12, CH#12, wg-CH-12; two countries (CH-US-1) are a way through two servers
    re.compile("(wg-)?(?P<country>[A-Z]{2})[-#][0-9]{1,4}"),
    # us1234.nordvpn.com, with anything behind
    re.compile(r"(?P<country>[a-z]{2})[0-9]{1,5}\.nordvpn\.com.*"),
)
_NO_CITY = re.compile("vpn|tun|net|srv|box|dns|tcp|udp|log|all|any|new|old")
_COMMENT = re.compile(rf"[ \t]*#+[ \t]*({'|'.join(KEYS)})[ \t]*=(.*)", re.IGNORECASE)


def combine(name: str, said: Labels) -> Labels:
    """What was said about the server called `name`, and what its name adds to that."""
    named = labels_of_name(name)
    if said.country not in (None, named.country):
        named = Labels()
    return Labels(
        country=said.country or named.country,
        city=said.city or named.city,
        operator=said.operator,
        asn=said.asn,
    )


def labels_of_name(name: str) -> Labels:
    for shape in _SHAPES:
        match = shape.fullmatch(name)
        if match is None:
            continue
        found = match.groupdict()
        country, city = COUNTRIES.get(found["country"].lower()), found.get("city")
        if country and not _NO_CITY.fullmatch(city or ""):
            return Labels(country, city)
    return Labels()


def read_comments(text: str) -> tuple[Labels, list[Flaw]]:
    """The lines `# country = ch` of a profile; a line that says nothing usable is a flaw."""
    words: dict[str, Any] = {}
    flaws = []
    for number, line in enumerate(text.split("\n"), start=1):
        match = _COMMENT.fullmatch(line.removesuffix("\r"))
        if match is None:
            continue
        key = match[1].lower()
        try:
            if key in words:
                raise ValueError("stands here a second time")
            words[key] = parse_label(key, match[2].strip())
        except ValueError as error:
            place = Place(number, match.start(1) + 1)
            flaws.append(Flaw(place, "N106", f"the comment {key} is not used: {error}"))
    return labels_from(words), flaws


def labels_from(words: Mapping[str, Any]) -> Labels:
    """Of values that `parse_label` gave, by key."""
    return Labels(**{key: words.get(key) for key in KEYS})


def parse_label(key: str, word: str) -> str | int:
    """The value of one of KEYS; ValueError with the reason."""
    if key == "country":
        country = COUNTRIES.get(word.lower())
        if country is None:
            raise ValueError(
                f"expected a country by its two letters such as `ch`, found {show(word)}"
            )
        return country
    if key == "asn":
        match = re.fullmatch("(?:AS)?([0-9]{1,10})", word, re.IGNORECASE | re.ASCII)
        if match is None or not 0 < int(match[1]) < 2**32:
            raise ValueError(f"expected a number such as `64496`, found {show(word)}")
        return int(match[1])
    if not re.fullmatch(r"[^\W_][\w .,'&+()/-]{0,39}", word):
        raise ValueError(f"expected a name of at most 40 characters, found {show(word)}")
    return word.lower()
