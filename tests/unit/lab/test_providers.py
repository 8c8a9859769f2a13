"""The files a lab hands out are what providers hand out, and a chain file takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainctl.lab.layout import LabSpec, Layout
from chainctl.lab.providers import (
    KeyPair,
    ServerKeys,
    profile_path,
    render_files,
    render_profile,
    render_server,
)
from tests.conftest import Golden

GOLDEN = Path(__file__).parent / "golden"


def keys_for(layout: Layout) -> dict[str, ServerKeys]:
    """Recognisable ones, not real."""

    def pair(seed: int) -> KeyPair:
        return KeyPair(
            *(f"{chr(65 + seed % 26)}{seed:03}{side}".ljust(43, "A") + "=" for side in "SP")
        )

    return {
        server.name: ServerKeys(
            pair(100 * server.number),
            "Q" * 43 + "=" if server.hop % 3 == 0 else "",
            tuple(pair(100 * server.number + each) for each in range(1, layout.spec.devices + 1)),
        )
        for server in layout.servers
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_profiles(number: int, golden: Golden) -> None:
    layout = Layout(LabSpec(spares=0))
    server = layout.server(number)
    text = render_profile(server, keys_for(layout)[server.name], 1)
    golden(GOLDEN / f"{server.label}.conf", text.replace("\r\n", "␍\n"))


def test_the_servers_side(golden: Golden) -> None:
    layout = Layout(LabSpec(spares=0))
    text = render_server(layout.server(3), keys_for(layout)["server3"])
    golden(GOLDEN / "server3.conf", text)


def test_the_chain_file_is_at_the_top_and_every_pool_has_its_spares() -> None:
    layout = Layout(LabSpec(hops=2, spares=3, devices=3))
    files = render_files(layout, keys_for(layout))
    pools = {str(path) for path in files if path.parts[0] == "profiles"}
    assert pools == {str(profile_path(server)) for server in layout.servers}
    assert len([path for path in pools if "hop1" in path]) == 3
    assert len([path for path in files if path.parts[0] == "devices"]) == 10
    assert "chain.yaml" in map(str, files)


@pytest.mark.parametrize(
    ("hops", "names"),
    [
        (1, ["exit"]),
        (2, ["guard", "exit"]),
        (3, ["guard", "middle", "exit"]),
        (4, ["guard", "middle1", "middle2", "exit"]),
    ],
)
def test_names_of_hops(hops: int, names: list[str]) -> None:
    layout = Layout(LabSpec(hops=hops))
    files = {str(path): text for path, text in render_files(layout, keys_for(layout)).items()}
    found = [line.split("name: ")[1].split(",")[0] for line in files["chain.yaml"].splitlines()[4:]]
    assert found == names


def test_keys_do_not_print() -> None:
    layout = Layout(LabSpec())
    text = repr(keys_for(layout))
    assert "S" + "A" * 20 not in text
    assert "Q" * 43 not in text
