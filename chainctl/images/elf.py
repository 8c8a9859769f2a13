"""What an ELF file needs at run time, read without running anything (elf(5), gABI chapter 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MAGIC_64_LITTLE = b"\x7fELF\x02\x01"


@dataclass(frozen=True)
class Elf:
    interpreter: str | None
    """Absolute path of the dynamic loader."""
    needed: tuple[str, ...]
    """Names of shared libraries (DT_NEEDED)."""
    search: tuple[str, ...]
    """Directories the file itself names (RPATH and RUNPATH), `$ORIGIN` unresolved."""


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def parse_elf(data: bytes) -> Elf | None:
    """None when `data` is not a 64-bit little-endian ELF file."""
    if not data.startswith(_MAGIC_64_LITTLE):
        return None
    segments = list(_segments(data))
    interpreter = next((_bytes(data, s) for s in segments if s.kind == _PT_INTERP), None)
    entries = list(_dynamic(data, segments))
    names = _string_table(segments, entries)
    return Elf(
        interpreter=None if interpreter is None else interpreter.rstrip(b"\0").decode(),
        needed=tuple(_string(data, names + v) for tag, v in entries if tag == _DT_NEEDED),
        search=tuple(
            directory
            for tag, v in entries
            if tag in (_DT_RPATH, _DT_RUNPATH)
            for directory in _string(data, names + v).split(":")
        ),
    )


def _segments(data: bytes) -> Iterator[_Segment]:
    (table,) = struct.unpack_from("<Q", data, 32)
    entry_size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _flags, offset, address, _physical, size = struct.unpack_from(
            "<IIQQQQ", data, table + index * entry_size
        )
        yield _Segment(kind, offset, address, size)


def _bytes(data: bytes, segment: _Segment) -> bytes:
    return data[segment.offset : segment.offset + segment.size]


def _dynamic(data: bytes, segments: list[_Segment]) -> Iterator[tuple[int, int]]:
    for segment in segments:
        if segment.kind == _PT_DYNAMIC:
            for tag, value in struct.iter_unpack("<QQ", _bytes(data, segment)):
                if tag == 0:
                    return
                yield tag, value


def _string_table(segments: list[_Segment], entries: list[tuple[int, int]]) -> int:
    """File offset of the dynamic strings; DT_STRTAB holds their address in memory."""
    address = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if address is None:
        return 0
    for segment in segments:
        if segment.kind == _PT_LOAD and 0 <= address - segment.address < segment.size:
            return address - segment.address + segment.offset
    raise ValueError("the dynamic string table lies in no loaded segment")


def _string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
