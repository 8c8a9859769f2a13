"""Who is meant by a name, and what is said when containers come, go and change."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from chainctl.model.clients import (
    NAME_LABEL,
    SERVICE_LABEL,
    Member,
    NamedClient,
    Publish,
    differences,
    find_member,
    name_of,
)
from chainctl.model.parts import UDP


def member(name: str, number: int = 2, **labels: str) -> Member:
    keys = {"client": NAME_LABEL, "service": SERVICE_LABEL}
    pairs = tuple(sorted((keys.get(key, key), value) for key, value in labels.items()))
    address = IPv4Address(f"172.31.7.{number}")
    return Member(name, f"id of {name}", address, f"02:42:ac:1f:07:{number:02x}", pairs)


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (member("plain"), "plain"),
        (member("labelled", client="mine"), "mine"),
        (member("loud", client="\x1b[2J"), "loud"),
        (member("two-lines", client="a\nb"), "two-lines"),
        (member("by-name"), "first"),
        (member("x", 9), "second"),
        (member("y", 10), "third"),
        (member("z", role="crawler", client="mine"), "fourth"),
        (member("z", role="other"), "z"),
        (member("z", kind="anything"), "fifth"),
    ],
)
def test_what_it_is_called(one: Member, name: str) -> None:
    """The chain file before the container's own label, and that before its name."""
    named = [
        NamedClient("first", container="by-name"),
        NamedClient("second", address=IPv4Address("172.31.7.9")),
        NamedClient("third", mac="02:42:ac:1f:07:0a"),
        NamedClient("fourth", label="role=crawler"),
        NamedClient("fifth", label="kind"),
    ]
    assert name_of(one, named) == name


def test_a_name_of_the_chain_file_goes_before_others() -> None:
    """Nobody gets a published port by calling himself as its owner is called."""
    mine, thief = member("real", 3), member("a", 2, service="web")
    named = [NamedClient("web", container="real")]
    assert find_member("web", [thief, mine], named) == mine
    assert find_member("web", [thief], named) == thief
    image = member("a", 4, client="web")
    for owner in (member("web", 5), member("b", 5, service="web")):
        assert find_member("web", [image, owner], []) == owner
    assert find_member("web", [image], []) == image
    assert find_member("web", [member("web-2", 5, service="web"), thief], []).container == "web-2"  # type: ignore[union-attr]
    assert find_member("web", [member("b", service="api")], named) is None


def test_what_is_told() -> None:
    before = [member("gone", 2), member("moved", 3), member("old-name", 4), member("same", 5)]
    renamed = replace(member("new-name", 4), key="id of old-name")
    after = [member("came", 2), member("moved", 6), renamed, member("same", 5)]
    assert list(differences(before, before, [])) == []
    told = list(differences(before, after, [NamedClient("mine", container="came")]))
    assert told == [
        ("client_left", "gone left; it had 172.31.7.2"),
        ("client_joined", "mine (container came) joined with 172.31.7.2"),
        ("client_moved", "moved has 172.31.7.6 now, not 172.31.7.3"),
        ("client_renamed", "old-name is called new-name now"),
    ]
    assert list(differences([], after[:1], [])) == [
        ("client_joined", "came joined with 172.31.7.2")
    ]
    assert list(differences(before[:1], [], [])) == [
        ("client_left", "gone left; it had 172.31.7.2")
    ]


def test_a_port_is_written_as_it_is_read() -> None:
    at = IPv4Address("192.168.10.254")
    assert str(Publish(8080, "web", 80)) == "8080:web:80"
    assert str(Publish(53, "names", 54, UDP, at)) == "192.168.10.254:53:names:54/udp"
