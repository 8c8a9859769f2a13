"""The codes of errors and notes: each that the code gives is documented, once."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CODES = re.compile(r"\s*(?:[CN]\d{3}\s*)+")


def _given() -> Iterator[tuple[str, Path]]:
    """Every code that stands in a module as a value."""
    for path in (ROOT / "chainctl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and re.fullmatch(r"[CN]\d{3}", value):
                yield value, path


def _documented() -> Counter[tuple[str, Path]]:
    """Cells of tables that hold nothing but codes, by document."""
    found: Counter[tuple[str, Path]] = Counter()
    for path in (ROOT / "docs").rglob("*.md"):
        for line in path.read_text().splitlines():
            if line.startswith("|"):
                cells = line.strip("|").split("|")
                found.update(
                    (w, path) for cell in cells if _CODES.fullmatch(cell) for w in cell.split()
                )
    return found


def test_every_code_is_documented_and_none_else() -> None:
    given, documented = ({code for code, _ in found} for found in (_given(), _documented()))
    assert not given - documented, "missing in docs/codes.md or a document it names"
    assert not documented - given, "given by nobody"


def test_a_document_gives_a_code_one_meaning() -> None:
    assert not [where for where, rows in _documented().items() if rows > 1]


def test_drivers_share_no_code() -> None:
    """What one says of files is not what the other says of interfaces."""
    drivers = ("host", "net", "runtime", "images", "store", "spec")
    packages: dict[str, set[str]] = {}
    for code, path in _given():
        packages.setdefault(code, set()).add(path.relative_to(ROOT / "chainctl").parts[0])
    shared = {code: places & {*drivers} for code, places in packages.items()}
    assert {code: places for code, places in shared.items() if len(places) > 1} == {
        # Asked for by who runs a program, to tell why it failed.
        "C303": {"host", "images"},
        # nftables is spoken to by its library, and for the gate without it.
        "C305": {"host", "net"},
    }
