"""Small ELF files made by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_BASE = 0x1000


def elf(
    *, interpreter: str | None = None, needed: Sequence[str] = (), runpath: str | None = None
) -> bytes:
    """A 64-bit file whose only load segment is the whole file at address 0x1000."""
    strings = b"\0"
    dynamic: list[tuple[int, int]] = []
    for tag, name in [*((1, n) for n in needed), *([(29, runpath)] if runpath else [])]:
        dynamic.append((tag, len(strings)))
        strings += name.encode() + b"\0"
    count = 2 + (interpreter is not None)
    body = 64 + 56 * count
    loader = (interpreter or "").encode() + b"\0"
    table_at = body + len(loader)
    dynamic_at = table_at + len(strings)
    entries = b"".join(
        struct.pack("<QQ", tag, value) for tag, value in [(5, _BASE + table_at), *dynamic, (0, 0)]
    )
    total = dynamic_at + len(entries)
    headers = _segment(1, 0, total) + _segment(2, dynamic_at, len(entries))
    if interpreter is not None:
        headers += _segment(3, body, len(loader))
    start = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    start += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return start + headers + loader + strings + entries


def _segment(kind: int, offset: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 5, offset, _BASE + offset, 0, size, size, 1)
