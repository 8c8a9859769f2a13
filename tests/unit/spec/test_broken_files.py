"""What a person reads about a broken file: golden texts, one for each file in `broken`.

The keys in these profiles are made up.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chainctl.cli.output import report_error
from chainctl.errors import MendFile
from chainctl.spec.chain_file import load_chain_file
from chainctl.spec.profile_file import load_profiles
from tests.conftest import Golden

HERE = Path(__file__).parent
BROKEN = HERE / "broken"
CHAIN_FILES = sorted(BROKEN.glob("*.yaml"))
PROFILES = sorted(
    path for path in (BROKEN / "profiles").iterdir() if path.stem not in ("good", "no-dns")
)


@pytest.fixture(autouse=True)
def _in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)


def test_there_are_many() -> None:
    assert len(CHAIN_FILES) >= 20
    assert len(PROFILES) >= 20


@pytest.mark.parametrize("path", CHAIN_FILES, ids=lambda path: path.stem)
def test_chain_file(path: Path, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MendFile) as caught:
        load_chain_file(Path(path.name))
    report_error(caught.value)
    golden(HERE / "golden" / "chain_files" / f"{path.stem}.txt", capsys.readouterr().err)
    assert all(complaint.code[:2] in ("C1", "C2") for complaint in caught.value.complaints)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile(path: Path, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MendFile) as caught:
        load_profiles(Path("profiles") / path.name)
    report_error(caught.value)
    text = capsys.readouterr().err
    golden(HERE / "golden" / "profiles" / f"{path.stem}.txt", text)
    assert all(complaint.code.startswith("C2") for complaint in caught.value.complaints)
    assert not re.search(r"[A-Za-z0-9+/]{30}", text.replace("profiles/", "")), "shows a key"


def test_every_line_is_counted_from_one() -> None:
    for path in CHAIN_FILES:
        with pytest.raises(MendFile) as caught:
            load_chain_file(Path(path.name))
        for complaint in caught.value.complaints:
            lines = Path(complaint.file).read_bytes().split(b"\n")
            assert 1 <= complaint.line <= len(lines), complaint
            assert complaint.column >= 1
