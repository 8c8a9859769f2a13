"""docs/chain-file.md against the code: every code, every key, and its example."""

from __future__ import annotations

import json
import re
from pathlib import Path

from chainctl.spec.chain_file import parse_chain_file
from chainctl.spec.model import Labels
from chainctl.spec.schema import render_schema
from chainctl.spec.server_list import parse_server_list

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "chain-file.md").read_text()
SOURCES = [
    *(ROOT / "chainctl" / "spec").glob("*.py"),
    ROOT / "chainctl" / "cli" / "init.py",
    ROOT / "chainctl" / "host" / "resolver.py",
    ROOT / "chainctl" / "supervisor" / "gather.py",
]


def test_every_code_is_there_and_none_else() -> None:
    code = set(re.findall(r'"([CN][12][0-9]{2})"', "".join(path.read_text() for path in SOURCES)))
    assert set(re.findall(r"^\| ([CN].*?) \|", DOCS, re.MULTILINE)) - {"code", "note"}
    listed = re.findall(r"^\|((?: [CN][12][0-9]{2})+) \|", DOCS, re.MULTILINE)
    assert set(" ".join(listed).split()) == code


def test_every_key_is_there_and_none_else() -> None:
    schema = json.loads(render_schema())
    keys = set()
    for name, key in schema["properties"].items():
        key = key["anyOf"][0] if name == "lan" else key  # one, or a list of them
        items = key.get("items", key)
        if "$ref" in items:
            inside = schema["$defs"][items["$ref"].rpartition("/")[2]]["properties"]
            prefix = f"{name}[]" if "items" in key else name
            keys |= {f"{prefix}.{word}" for word in inside}
        if "$ref" not in key:
            keys.add(name)
    table = DOCS.partition("## Keys")[2].partition("##")[0]
    assert set(re.findall(r"^\| `([a-z_.\[\]]+)`", table, re.MULTILINE)) == keys


def test_the_example_is_read() -> None:
    text = DOCS.partition("```yaml\n")[2].partition("```")[0]
    spec = parse_chain_file(text, ROOT / "examples" / "docs.yaml")
    assert [hop.name for hop in spec.hops] == ["guard", "middle", "exit"]


def test_the_list_of_servers_is_read() -> None:
    text = DOCS.partition("## One account")[2].partition("```\n#")[2].partition("```")[0]
    (server,) = parse_server_list(f"#{text}", ROOT / "relays.csv")
    assert server.labels == Labels(operator="datapacket", asn=64500)
