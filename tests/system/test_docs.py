"""What README and docs show is what happens: every `console` block is run in a lab.

A line `$ …` is typed on the machine chainctl runs on, `device$ …` on a device of its LAN; the
lines up to the next prompt are what is printed. Compared are the lines, apart from numbers,
times and spaces. `pytest --update` writes what was printed into the text.

Each document gets a lab of its own, in whose folder lie the README's chain file and profiles
for it, and its blocks run in order: what one leaves behind the next one finds.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings
from chainctl.spec.chain_file import load_chain_file

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "```console\n" in path.read_text()
)
SHOWN_FOLDER = "/srv/chain"
"""Where the documents have the user's chain file."""

_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.M | re.S)
_PROMPT = re.compile(r"(device)?\$ (.+)")


@dataclass(frozen=True)
class Step:
    prompt: str
    command: str
    output: str

    def __str__(self) -> str:
        return f"{self.prompt} {self.command}\n{self.output}"


class Stage:
    """A lab, spoken to in the words of the documents."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._words = {
            SHOWN_FOLDER: str(lab.directory),
            "/run/chainctl": lab.environ["CHAINCTL_RUN_DIR"],
            "chainctl demo": f"chainctl demo --name {lab.name}d",
            "chainctl lab up": f"chainctl lab up {lab.name}l",
        }

    def type(self, step: Step) -> str:
        """What the command prints, in the documents' words."""
        command = _replace(step.command.replace("sudo ", ""), self._words)
        path = f"PATH={Path(sys.executable).parent}:$PATH; "
        where = "client" if step.prompt.startswith("device") else "host"
        process = self._lab.popen(
            where,
            ["bash", "-c", f"{path}{command}"],
            cwd=self._lab.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        printed, _ = process.communicate(timeout=120)
        back = {real: shown for shown, real in self._words.items()}
        back |= {f"{self._lab.name}d": "demo", f"host {self._lab.name}l": "host"}
        back |= {f" {self._lab.name}l\n": "\n", f"{self._lab.name}l": "lab"}
        return _replace(re.sub(r"/tmp/chainctl-demo-\w+", "/tmp/demo", printed), back)


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    spec = LabSpec(f"docs{secrets.token_hex(3)}")
    go = find_wireguard_go(Settings.load().image_dir)
    with Lab.create(spec, folder, wireguard_go=go) as lab:
        _lay_out(folder)
        stage = Stage(lab)
        try:
            yield stage
        finally:
            stage.type(Step("$", "chainctl down", ""))
            remove(f"{spec.name}l")


def _lay_out(folder: Path) -> None:
    """The README's chain file, and the folders it names with the lab's profiles in them."""
    chain_file = re.search(r"```yaml\n(chain: .*?)```", (ROOT / "README.md").read_text(), re.S)
    assert chain_file is not None
    (folder / "chain.yaml").write_text(chain_file[1])
    patterns = re.findall(r"servers: \./(\S+)/\*\.conf", chain_file[1])
    for number, pattern in enumerate(patterns, start=1):
        (folder / f"profiles/hop{number}").rename(folder / pattern)
    load_chain_file(folder / "chain.yaml")


def parse_block(block: str) -> list[Step]:
    steps: list[Step] = []
    for line in block.splitlines(keepends=True):
        if found := _PROMPT.match(line):
            steps.append(Step(f"{found[1] or ''}$", found[2], ""))
        else:
            *before, last = steps
            steps = [*before, Step(last.prompt, last.command, last.output + line)]
    return steps


def shape(text: str) -> list[str]:
    """The lines, without numbers, engine, and how far apart the words are."""
    text = re.sub(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b|\d+(\.\d+)*", "#", text)
    text = text.replace("wireguard (kernel)", "wireguard-go")
    text = re.sub(r"\b(\d+s)?\d+ms\b|\b\d+s\b", "#s", text)
    # A hop that was just made has no loss yet.
    text = re.sub(r"(?<= )-(?= )", "# %", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def _replace(text: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text


@pytest.mark.root
@pytest.mark.timeout(240)
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_shown_is_what_happens(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    update = request.config.getoption("--update")
    text = path.read_text()
    wrong: list[tuple[Step, Step]] = []
    with stage(tmp_path / "chain") as here:
        for block in _BLOCK.findall(text):
            seen = []
            for step in parse_block(block):
                seen.append(Step(step.prompt, step.command, here.type(step)))
                if shape(seen[-1].output) != shape(step.output):
                    wrong.append((step, seen[-1]))
            if wrong and update:
                text = text.replace(block, "".join(map(str, seen)))
    if update and wrong:
        path.write_text(text)
    elif wrong:
        shown, happened = wrong[0]
        assert shape(str(shown)) == shape(str(happened))


def test_no_block_is_left_out() -> None:
    """A command with its output that is not marked would never be run."""
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S):
            assert language == "console" or not _PROMPT.match(block), (path.name, block)


def test_every_link_leads_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)
