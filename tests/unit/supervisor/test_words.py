"""What people read about parts and plans."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from chainctl.model.chain import Engine
from chainctl.model.parts import HOST, ForeignLink, LanMode, NsName, Part
from chainctl.model.wireguard import WireGuardConfig
from chainctl.net.layout import layout
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, plan
from chainctl.supervisor.words import describe_part, describe_plan, describe_step, hop_of
from tests.conftest import Golden
from tests.unit.supervisor.chains import make_chain

HERE = Path(__file__).parent
CHAIN = make_chain(2, docker_user=True)
PARTS: tuple[Part, ...] = (
    *layout(CHAIN),
    *(part for part in layout(make_chain(1, engine=Engine.KERNEL)) if "tunA" in str(part.key)),
    *layout(make_chain(1, lan_mode=LanMode.DOCKER)),
    ForeignLink(CHAIN.namespace(CHAIN.exit), "evil0", "veth"),
    ForeignLink(NsName("panel"), "evil0", ""),
)


def test_every_kind_of_part_has_words(golden: Golden) -> None:
    assert {type(part) for part in PARTS} == set(typing.get_args(Part))
    said = list(dict.fromkeys(describe_part(part) for part in PARTS))
    golden(HERE / "golden" / "parts.txt", "".join(f"{text}\n" for text in said))


def test_no_words_of_the_inside() -> None:
    """People know chains, hops, servers, clients and the gate."""
    inside = re.compile(
        r"\b(panel|identity|port|leg|wire|tuple|row|ifindex|clsact|BPF|uid|c\d+-\w+)s?\b",
        re.IGNORECASE,
    )
    for part in PARTS:
        text = describe_part(part)
        assert not inside.search(text), text
        assert "None" not in text
        assert "IPv4" not in text


def test_no_key_is_shown() -> None:
    secret = CHAIN.exit.tunnel.config
    assert isinstance(secret, WireGuardConfig)
    for part in PARTS:
        assert secret.peer_public_key not in describe_part(part)
        assert secret.private_key.reveal() not in repr(part)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (CloseGate(), "shut the gate"),
        (OpenGate(), "open the gate"),
        (Prove(2), "prove hop 2"),
        (Make(PARTS[0]), f"make {describe_part(PARTS[0])}"),
        (Remove(PARTS[0]), f"remove {describe_part(PARTS[0])}"),
        (Change(PARTS[0], PARTS[0]), f"change {describe_part(PARTS[0])}"),
    ],
    ids=["close", "open", "prove", "make", "remove", "change"],
)
def test_steps(step: object, text: str) -> None:
    assert describe_step(step) == text  # type: ignore[arg-type]


def test_each_part_of_a_hop_names_it() -> None:
    for part in layout(CHAIN):
        ns = getattr(part, "ns", getattr(part, "name", HOST))
        for hop in CHAIN.hops:
            if ns == CHAIN.namespace(hop):
                assert hop_of(CHAIN, part) == hop.name
        if ns == CHAIN.gateway:
            assert hop_of(CHAIN, part) == ""


@pytest.mark.parametrize("case", ["new", "same", "another exit", "a hop less"])
def test_plan_in_words(case: str, golden: Golden) -> None:
    before = {
        "new": None,
        "same": make_chain(3),
        "another exit": make_chain(3, servers=(1, 1, 2)),
        "a hop less": make_chain(2),
    }[case]
    after = make_chain(3)
    steps = plan(layout(after), layout(before) if before else ())
    said = describe_plan(after, before, steps)
    assert len(said["steps"]) == len(steps)
    text = "".join(f"{line}\n" for line in said["lines"])
    golden(HERE / "golden" / f"plan_{case.replace(' ', '_')}.txt", text)
