"""Who uses a chain, as `status` says it."""

from __future__ import annotations

from ipaddress import IPv4Address

from chainctl.model.clients import DockerSeen, Member, NamedClient, Neighbour
from chainctl.supervisor.clients import describe_clients, describe_published, notes_on_containers
from tests.unit.supervisor.chains import make_chain

CHAIN = make_chain(1, published=2)
WEB = Member("stack-web-1", "0a1b", IPv4Address("172.31.7.2"), "02:42:ac:1f:07:02")
NAMED = (
    NamedClient("tv", address=IPv4Address("192.168.10.20")),
    NamedClient("laptop", mac="02:00:5e:10:00:01"),
    NamedClient("phone", mac="02:00:5e:10:00:02"),
    NamedClient("web", container="stack-web-1"),
    NamedClient("gone", label="role=crawler"),
)
HEARD = (
    Neighbour("lan0", IPv4Address("192.168.10.21"), "02:00:5e:10:00:01"),
    Neighbour("lan0", IPv4Address("192.168.10.22"), "02:00:5e:10:00:09"),
    Neighbour("lan2", IPv4Address("172.31.7.2"), "02:42:ac:1f:07:02"),
    Neighbour("lan2", IPv4Address("172.31.7.200"), "02:00:5e:10:00:0a"),
)


def test_everybody_is_there_once() -> None:
    told = describe_clients(CHAIN, NAMED, DockerSeen(answers=True, members=(WEB,)), HEARD)
    assert [(one["name"], one["kind"], one["address"], one["here"]) for one in told] == [
        ("web", "container", "172.31.7.2", True),
        ("tv", "device", "192.168.10.20", False),
        ("laptop", "device", "192.168.10.21", True),
        ("phone", "device", None, False),
        ("gone", "container", None, False),
        (None, "device", "192.168.10.22", True),
        (None, "program", "172.31.7.200", True),
    ]
    assert told[0]["container"] == "stack-web-1"
    assert told[2]["mac"] == "02:00:5e:10:00:01"


def test_ports_that_lead_nowhere_are_said() -> None:
    chain = make_chain(1, published=0)
    assert [one["to"] for one in describe_published(chain)] == [None, "172.31.7.99"]
    (note,) = notes_on_containers(chain, DockerSeen(answers=True))
    assert note.startswith("[N505] port 8080 leads nowhere")
    first, *_ = notes_on_containers(chain, DockerSeen(answers=False))
    assert first.startswith("[N504]")
    assert not list(notes_on_containers(make_chain(1), DockerSeen()))
