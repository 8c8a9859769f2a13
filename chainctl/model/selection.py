"""Which servers a chain uses: per hop the two tunnel slots, and which of them carries traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chainctl.model.chain import Slot


@dataclass(frozen=True)
class HopSelection:
    """`servers` holds the names of the pool's servers by slot; at least the active one."""

    active: Slot = Slot.A
    servers: Mapping[Slot, str] = field(default_factory=dict)

    @property
    def server(self) -> str:
        """The one that carries traffic; "" when none was chosen yet."""
        return self.servers.get(self.active, "")

    @property
    def spare(self) -> Slot:
        """The slot that does not carry traffic."""
        return self.active.other

    @property
    def is_twice(self) -> bool:
        """Both tunnels are to the same server: a client begins anew beside the one that ended."""
        return self.servers.get(self.spare) == self.server != ""

    def with_candidate(self, server: str) -> HopSelection:
        """`server` comes up beside the active one."""
        return HopSelection(self.active, {self.active: self.server, self.spare: server})

    def switched(self) -> HopSelection:
        """The candidate carries traffic, the other one drains."""
        return HopSelection(self.spare, self.servers)

    def alone(self) -> HopSelection:
        """Only the active one is left."""
        return HopSelection(self.active, {self.active: self.server})

    def to_json(self) -> dict[str, Any]:
        servers = {slot.name: server for slot, server in self.servers.items()}
        return {"active": self.active.name, "servers": servers}

    @classmethod
    def from_json(cls, value: Any) -> HopSelection:
        """Raises KeyError, TypeError or AttributeError for anything `to_json` did not write."""
        servers = {Slot[name]: str(server) for name, server in value["servers"].items()}
        return cls(Slot[value["active"]], servers)
