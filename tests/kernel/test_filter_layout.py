"""Do `bpf/identity.h` and `chainctl.net.identity` say the same? Asked of the object's BTF."""

from __future__ import annotations

import ctypes as c
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainctl.model.parts import PortMode
from chainctl.net import identity
from chainctl.net.filter import IDENTITY_OBJECT, Port
from chainctl.net.identity import Reason, Verdict
from chainctl.net.policy import PolicyKey, PolicyRule

STRUCT, ENUM = 4, 6
TUPLE = ["source", "destination", "source_port", "destination_port", "protocol"]
LAYOUTS = {
    "port": (identity.PORT, Port._fields),
    "wire_key": (identity.WIRE_KEY, ["ifindex", *TUPLE, "fragment", "zero"]),
    "wire": (identity.WIRE, ["rule", "flags"]),
    "endpoint_key": (identity.ENDPOINT_KEY, ["scope", "address"]),
    "cidr_key": (identity.CIDR_KEY, ["prefix_length", "scope", "address"]),
    "policy_key": (identity.POLICY_KEY, ["scope", *PolicyKey._fields, "zero"]),
    "policy_rule": (identity.POLICY_RULE, [*PolicyRule._fields, "covers", "zero"]),
    "flow_key": (identity.FLOW_KEY, [*TUPLE, "kind", "zero"]),
    "verdict": (identity.VERDICT, Verdict._fields),
}


class Btf:
    """The types of an object file, as libbpf reads them."""

    def __init__(self, path: Path) -> None:
        self._lib = c.CDLL("libbpf.so.1")
        self._lib.btf__parse.restype = c.c_void_p
        self._lib.btf__type_by_id.restype = c.c_void_p
        self._lib.btf__type_by_id.argtypes = [c.c_void_p, c.c_uint32]
        self._lib.btf__name_by_offset.restype = c.c_char_p
        self._lib.btf__name_by_offset.argtypes = [c.c_void_p, c.c_uint32]
        self._lib.btf__find_by_name_kind.argtypes = [c.c_void_p, c.c_char_p, c.c_uint32]
        self._lib.btf__free.argtypes = [c.c_void_p]
        self._btf = self._lib.btf__parse(str(path).encode(), None)
        assert self._btf

    def close(self) -> None:
        self._lib.btf__free(self._btf)

    def size(self, name: str) -> int:
        return self._head(name, STRUCT)[2]

    def offsets(self, name: str) -> dict[str, int]:
        return {member: bits // 8 for member, _, bits in self._members(name, STRUCT, 12)}

    def values(self, name: str) -> dict[str, int]:
        return {member: value for member, value, _ in self._members(name, ENUM, 8)}

    def _members(self, name: str, kind: int, size: int) -> Iterator[tuple[str, int, int]]:
        at, info, _ = self._head(name, kind)
        for number in range(info & 0xFFFF):
            raw = c.string_at(at + 12 + size * number, size).ljust(12, b"\0")
            text, value, bits = struct.unpack("=3I", raw)
            yield self._lib.btf__name_by_offset(self._btf, text).decode(), value, bits & 0xFFFFFF

    def _head(self, name: str, kind: int) -> tuple[int, int, int]:
        found = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        assert found > 0, f"no {name} in the object"
        at = self._lib.btf__type_by_id(self._btf, found)
        _, info, size = struct.unpack("=3I", c.string_at(at, 12))
        return at, info, size


@pytest.fixture
def btf() -> Iterator[Btf]:
    read = Btf(IDENTITY_OBJECT)
    yield read
    read.close()


@pytest.mark.parametrize("name", LAYOUTS)
def test_structs(btf: Btf, name: str) -> None:
    layout, fields = LAYOUTS[name]
    letters = _letters(layout)
    assert len(letters) == len(fields)
    offsets = {
        field: struct.calcsize("=" + "".join(letters[:number]))
        for number, field in enumerate(fields)
    }
    assert offsets == btf.offsets(name)
    assert layout.size == btf.size(name)


def _letters(layout: struct.Struct) -> list[str]:
    return re.findall(r"4s|[QIHB]", layout.format)


def test_reasons(btf: Btf) -> None:
    assert {one.name: one.value for one in Reason} == btf.values("reason")


def test_port_modes() -> None:
    """They are compared as text: nothing in the object refers to the enum's type."""
    header = (Path(__file__).parents[2] / "bpf" / "identity.h").read_text()
    for mode in PortMode:
        assert f"MODE_{mode.name} = {mode.value}," in header
    for name, value in (("UNKNOWN", 0), ("HOST", 1), ("WORLD", 2)):
        assert f"IDENTITY_{name} = {value}," in header
        assert getattr(identity, name) == value


def test_reasons_that_pass_are_the_ones_named_so() -> None:
    assert {one for one in Reason if one.passes} == {
        one for one in Reason if one.name.startswith("PASS_")
    }
