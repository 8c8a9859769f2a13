from __future__ import annotations

import pytest

from scripts.check_tree import complaints


@pytest.mark.parametrize(
    "line",
    [
        "cd /" + "work/main",
        "path = '/" + "root/.cache/x'",
        "/" + "home/anna/chainctl",
        "http://" + "deb.debian" + ".org/debian",
        "index-url = https://" + "pypi" + ".org/simple",
        "https://files." + "pythonhosted.org/x",
        "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    ],
)
def test_is_refused(line: str) -> None:
    assert next(complaints("file", f"fine\n{line}\n")).startswith("file:2: ")


@pytest.mark.parametrize(
    "line",
    [
        "/var/lib/chainctl/images",
        "a net/work/flow diagram",
        "https://www.debian.org/security",
        "https://www.gnu.org/licenses/",
        "the root / of the file system",
        "bind ${run}/root/x read-only",
    ],
)
def test_passes(line: str) -> None:
    assert list(complaints("file", line)) == []
