"""Refuse what must not be committed: paths of one machine, package registries, private keys.

`make check` runs it over every file git knows. A clone has to work anywhere, with any mirror,
so nothing in it names the machine or the registry it was made with.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.$}])/(?:work|root|Users|home/[a-z]\w*)/[\w.]|/tmp/[a-z]*\.?[A-Za-z0-9]{10}/"
    ),
    "a package registry": re.compile(
        r"(?<![\w.-])(?:deb|security|snapshot|ftp|archive|registry|files|index|static|proxy|repo1?)"
        r"\.[a-z]+(?:hosted)?\.(?:org|io|com|dev)\b|\bpypi\.(?:org|python)|\bcrates\.io\b"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


def complaints(name: str, text: str) -> Iterator[str]:
    """One line for each thing in `text` that must not be committed."""
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in _FORBIDDEN.items():
            if found := pattern.search(line):
                yield f"{name}:{number}: {what}: {found[0]}"


def main() -> int:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    found: list[str] = []
    for name in filter(None, listed.split("\0")):
        path = Path(name)
        if path.is_file():
            found += complaints(name, path.read_bytes().decode(errors="replace"))
    print("\n".join(found) or "No machine path, registry or private key is committed.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
