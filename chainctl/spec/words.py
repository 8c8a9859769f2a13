"""Words of complaints: what was written, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def quote(written: object) -> str:
    """What stands in the file, short and printable, between backticks."""
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(written))
    return f"`{text[:39]}…`" if len(text) > 40 else f"`{text}`"


def nearest(written: object, valid: Iterable[str]) -> str:
    """` Did you mean …?` with the valid word most like `written`; empty when none is like it."""
    words = {word.lower(): word for word in valid}
    found = difflib.get_close_matches(str(written)[:40].lower(), words, n=1)
    return f" Did you mean `{words[found[0]]}`?" if found else ""
