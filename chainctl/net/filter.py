"""The identity filter on this machine: its maps, its places on the ports, what it has seen.

The supervisor's netlink thread is the only caller. Every method that takes an ifindex is to be
called by a thread inside the namespace of that link (the panel for ports): the kernel looks the
number up in the caller's namespace. One thread at a time; all rows may be written twice.

The maps are pinned under `pin_dir/v1` and outlive the process, as does the attached program. A
lost pin does not cut a wire, it only leaves the program with maps nobody can reach: `attached`
and `pins_whole` find that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from chainctl.errors import MendHost
from chainctl.model.parts import TCP, UDP, ClientPolicy
from chainctl.net import clsact, identity, libbpf
from chainctl.net import filter_rows as rows_of
from chainctl.net.bpffs import is_bpffs, mount_bpffs
from chainctl.net.filter_rows import Port, WireRow
from chainctl.net.identity import Reason, Verdict
from chainctl.net.libbpf import EGRESS, INGRESS
from chainctl.net.policy import CLASS_OF_PORT, PolicyRows, compile_policy

__all__ = [
    "IDENTITY_OBJECT",
    "TUN_OBJECT",
    "PanelFilter",
    "Port",
    "WireRow",
    "attach_tun",
    "is_bpffs",
    "mount_bpffs",
    "remove_pins",
    "tun_attached",
]

IDENTITY_OBJECT = Path(__file__).with_name("identity.bpf.o")
TUN_OBJECT = Path(__file__).with_name("tun.bpf.o")
LAYOUT = "v1"
"""The folder of the pins; another layout of the maps gets another one."""
FLOWS = 16384


class PanelFilter:
    """The loaded filter. Made by `open`; `close` leaves everything pinned and attached in force."""

    def __init__(self, opened: libbpf.Object, pins: Path, flows: int) -> None:
        self._object = opened
        self._pins = pins
        self._flows = flows
        self._program = opened.program("panel_port")
        self._info = libbpf.read_program_info(self._program)
        self._maps = opened.maps()
        self._arrived: list[Verdict] = []
        self._ring = libbpf.Ring(
            self._maps["verdict_map"].fd,
            lambda record: self._arrived.append(Verdict.parse(record)),
        )

    @classmethod
    def open(
        cls, object_path: Path, pin_dir: Path, sizes: Mapping[str, int] | None = None
    ) -> PanelFilter:
        """Load the program, with the maps pinned under `pin_dir` or new ones pinned there.

        `sizes`: another `max_entries` by map name; `flow_table` is one scope's share of flows.
        Raises MendHost C320 when pinned maps have another layout, C322 when `pin_dir` is not in
        a bpffs or the kernel refuses the program.
        """
        if not is_bpffs(pin_dir):
            raise MendHost("C322", f"{pin_dir} is not in a BPF file system", hint="chainctl doctor")
        asked = dict(sizes or {})
        flows = asked.pop("flow_table", FLOWS)
        pins = pin_dir / LAYOUT
        pins.mkdir(mode=0o700, exist_ok=True)
        opened = libbpf.Object(object_path, pin_root=pins, device_maps=["far_map"], sizes=asked)
        return cls(opened, pins, flows)

    def close(self) -> None:
        self._ring.close()
        self._object.close()

    @property
    def program_id(self) -> int:
        return self._info.id

    @property
    def program_fd(self) -> int:
        """For test runs; belongs to this object."""
        return self._program

    def pins_whole(self) -> bool:
        """Every map is pinned, and what is pinned is the map in hand."""
        return all(
            libbpf.pinned_id(self._pins / name) == one.info.id for name, one in self._maps.items()
        )

    # --- places on the ports

    def attach(self, ifindex: int) -> None:
        """Put the filter on the port, in one step in place of an older one. C323 if refused."""
        clsact.attach(ifindex, INGRESS, self._program)

    def attached(self, ifindex: int) -> bool:
        """This very program, with the maps in hand, judges every packet there, and first."""
        number = clsact.our_program(ifindex, INGRESS)
        return number is not None and self._is_this(number) and not self.foreign_filters(ifindex)

    def foreign_filters(self, ifindex: int) -> list[str]:
        """What judges there before us, in words."""
        return clsact.before_ours(ifindex, INGRESS)

    def remove_foreign_filters(self, ifindex: int) -> None:
        """The panel is ours alone. TCX programs cannot be removed from outside and stay."""
        clsact.remove_others(ifindex, INGRESS)

    def detach(self, ifindex: int) -> None:
        clsact.detach(ifindex, INGRESS)

    def _is_this(self, number: int) -> bool:
        """Compared by instructions and maps: one loaded by an earlier process is as good."""
        if number == self._info.id:
            return True
        with libbpf.program_by_id(number) as fd:
            there = libbpf.read_program_info(fd)
        return (there.name, there.tag, there.maps) == self._info[1:]

    # --- ports and wires

    def put_port(self, ifindex: int, port: Port) -> None:
        self._make_room("port_map", {identity.U32.pack(ifindex)})
        self._maps["port_map"].put(identity.U32.pack(ifindex), rows_of.pack_port(port))

    def ports(self) -> dict[int, Port]:
        return {
            rows_of.to_number(key): rows_of.parse_port(value)
            for key, value in self._maps["port_map"].rows().items()
        }

    def port(self, ifindex: int) -> Port | None:
        value = self._maps["port_map"].get(identity.U32.pack(ifindex))
        return None if value is None else rows_of.parse_port(value)

    def remove_port(self, ifindex: int) -> None:
        self._maps["port_map"].drop(identity.U32.pack(ifindex))

    def put_far(self, ifindex: int, far: int) -> None:
        """The wire that begins at `ifindex` ends at `far`, until `far` is deleted."""
        self._maps["far_map"].put(identity.U32.pack(ifindex), identity.U32.pack(far))

    def far(self, ifindex: int) -> int | None:
        """Where the wire that begins there ends."""
        value = self._maps["far_map"].get(identity.U32.pack(ifindex))
        return None if value is None else rows_of.to_number(value)

    def far_of_each(self, indexes: Sequence[int]) -> dict[int, int | None]:
        values = self._maps["far_map"].get_each(identity.U32.pack(index) for index in indexes)
        ends = (None if value is None else rows_of.to_number(value) for value in values)
        return dict(zip(indexes, ends, strict=True))

    def fars(self) -> dict[int, int]:
        ends = {rows_of.to_number(key): None for key in self._maps["far_map"].scan()}
        found = {index: self.far(index) for index in ends}
        return {index: far for index, far in found.items() if far is not None}

    def remove_far(self, ifindex: int) -> None:
        self._maps["far_map"].drop(identity.U32.pack(ifindex))

    def put_wires(self, wires: Iterable[WireRow]) -> None:
        """Add tuples, or change them. Raises MendHost C321 when they do not fit, before any."""
        rows = {}
        for wire in wires:
            if wire.protocol not in (TCP, UDP):
                raise ValueError(f"a wire carries TCP or UDP, not protocol {wire.protocol}")
            rows[rows_of.wire_key(wire)] = rows_of.pack_wire(wire)
            if wire.fragments:
                rows[rows_of.fragment_key(wire)] = rows_of.pack_wire(wire)
        self._make_room("wire_map", rows)
        self._maps["wire_map"].put_all(rows)
        self._drop_idle_fragment_rows({rows_of.to_number(key[:4]) for key in rows})

    def wires(self, of: Iterable[int] | None = None) -> list[WireRow]:
        """All, or those that begin at the ports `of`."""
        rows = self._maps["wire_map"].rows() if of is None else self._wire_rows(of)
        found = (rows_of.parse_wire(key, value) for key, value in rows.items())
        return [wire for wire in found if wire is not None]

    def remove_wires(self, wires: Iterable[WireRow]) -> None:
        gone = list(wires)
        for wire in gone:
            self._maps["wire_map"].drop(rows_of.wire_key(wire))
        self._drop_idle_fragment_rows({wire.ifindex for wire in gone})

    def remove_wires_of(self, ifindex: int) -> None:
        """Nothing may pass that port, nor the rest of what once did."""
        self._drop_keys("wire_map", self._wire_rows([ifindex]))

    def _wire_rows(self, of: Iterable[int]) -> dict[bytes, bytes]:
        return self._maps["wire_map"].rows_of(0, {identity.U32.pack(index) for index in of})

    def _drop_idle_fragment_rows(self, of: Iterable[int]) -> None:
        """Later fragments may only pass while some first one may."""
        rows = self._wire_rows(of)
        wires = (rows_of.parse_wire(key, value) for key, value in rows.items())
        needed = {rows_of.fragment_key(wire) for wire in wires if wire and wire.fragments}
        idle = {key for key in rows if rows_of.is_fragment_key(key)} - needed
        self._drop_keys("wire_map", idle)

    # --- policy

    def put_policy(self, policy: ClientPolicy) -> None:
        """Make `policy` the only policy of its scope; flows stay. C321 before anything is lost."""
        self.put_policy_rows(policy.scope, compile_policy(policy))

    def put_policy_rows(
        self, scope: int, rows: PolicyRows, classes: Mapping[int, int] = CLASS_OF_PORT
    ) -> None:
        """Every packet meanwhile meets the old decision or the new one: rules are there before
        the identities that need them, and go after them.
        """
        want = {
            "policy_map": rows_of.rule_rows(scope, rows),
            "endpoint_map": rows_of.endpoint_rows(scope, rows),
            "cidr_map": rows_of.cidr_rows(scope, rows),
        }
        for name, wanted in want.items():
            self._make_room(name, wanted)
        stale = {name: self._keys_of(name, scope) - wanted.keys() for name, wanted in want.items()}
        self._ensure_flows(scope)
        self._maps["port_class"].put_all(
            {identity.U32.pack(port): identity.CLASS.pack(it) for port, it in classes.items()}
        )
        for name, wanted in want.items():
            self._maps[name].put_all(wanted)
        for name in ("endpoint_map", "cidr_map", "policy_map"):
            self._drop_keys(name, stale[name])

    def policy(self, scope: int) -> PolicyRows | None:
        """What is in force, to be compared with `compile_policy`; None when flows or classes
        have no place, so that rows would not be what they seem.
        """
        if not self.classes_whole():
            return None
        if self._maps["flow_map"].get(identity.U32.pack(scope)) is None:
            return None
        return rows_of.parse_rows(
            scope, {name: self._rows_of(name, scope) for name in rows_of.POLICY_MAPS}
        )

    def _rows_of(self, name: str, scope: int) -> dict[bytes, bytes]:
        place = rows_of.place_of_scope(name)
        return self._maps[name].rows_of(place, {identity.U32.pack(scope)})

    def classes_whole(self) -> bool:
        classes = self._maps["port_class"]
        return all(
            classes.get(identity.U32.pack(port)) == identity.CLASS.pack(expected)
            for port, expected in CLASS_OF_PORT.items()
        )

    def flow_scopes(self) -> frozenset[int]:
        """The scopes that have a place for flows."""
        return frozenset(rows_of.to_number(key) for key in self._maps["flow_map"].scan())

    def scopes(self) -> set[int]:
        """Every scope that has flows or rows of any kind."""
        found = set(self.flow_scopes())
        for name in rows_of.POLICY_MAPS:
            found |= {rows_of.scope_of(name, key) for key in self._maps[name].rows()}
        return found

    def remove_policy(self, scope: int) -> None:
        """Nobody of the scope has an identity, a rule or a flow any more."""
        for name in ("endpoint_map", "cidr_map", "policy_map"):
            self._drop_keys(name, self._keys_of(name, scope))
        self._maps["flow_map"].drop(identity.U32.pack(scope))

    def flow_table(self, scope: int) -> int | None:
        """The id of the map that remembers the scope's flows (`libbpf.map_by_id`)."""
        value = self._maps["flow_map"].get(identity.U32.pack(scope))
        return None if value is None else rows_of.to_number(value)

    def _ensure_flows(self, scope: int) -> None:
        if self.flow_table(scope) is not None:
            return
        key_size, value_size = identity.FLOW_KEY.size, identity.U64.size
        with libbpf.new_map(
            libbpf.LRU_HASH, "flow_table", key_size, value_size, self._flows
        ) as made:
            self._maps["flow_map"].put(identity.U32.pack(scope), identity.U32.pack(made))

    def _keys_of(self, name: str, scope: int) -> set[bytes]:
        return set(self._rows_of(name, scope))

    def _drop_keys(self, name: str, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._maps[name].drop(key)

    # --- gates

    def open_gate(self, ifindex: int, until_boot_ns: int) -> None:
        """Clients may pass that gate until then (`chainctl.host.clock.boot_ns`)."""
        self.open_gates({ifindex: until_boot_ns})

    def open_gates(self, until_boot_ns: Mapping[int, int]) -> None:
        """The same for several, with one call."""
        if any(ifindex <= 0 for ifindex in until_boot_ns):
            raise ValueError("gate 0 is the one that is always shut")
        rows = {
            identity.U32.pack(ifindex): identity.U64.pack(until)
            for ifindex, until in until_boot_ns.items()
        }
        self._maps["gate_map"].put_all(rows)

    def close_gate(self, ifindex: int) -> None:
        self._maps["gate_map"].drop(identity.U32.pack(ifindex))

    def gate(self, ifindex: int) -> int:
        """Boot time in nanoseconds until which it is open; 0: it is shut."""
        value = self._maps["gate_map"].get(identity.U32.pack(ifindex))
        return int(identity.U64.unpack(value)[0]) if value else 0

    def gates(self) -> dict[int, int]:
        return {
            rows_of.to_number(key): int(identity.U64.unpack(value)[0])
            for key, value in self._maps["gate_map"].rows().items()
        }

    # --- as a whole

    def raw_rows(self, name: str) -> tuple[bytes, bytes]:
        """A map as it is, to be compared with what it was."""
        return self._maps[name].raw()

    def split_rows(self, name: str, raw: tuple[bytes, bytes]) -> dict[bytes, bytes]:
        return self._maps[name].split(raw)

    # --- what it has seen

    def counters(self) -> dict[Reason, int]:
        """Packets by reason since the maps were made, zeros left out."""
        size = identity.U64.size * libbpf.possible_cpus()
        found = {}
        for reason in Reason:
            value = self._maps["reason_map"].get(identity.U32.pack(reason), size) or b""
            if total := sum(number for (number,) in identity.U64.iter_unpack(value)):
                found[reason] = total
        return found

    def events(self) -> list[Verdict]:
        """The verdicts since the last call; those that were lost are in the counters."""
        self._ring.consume()
        arrived = self._arrived[:]
        del self._arrived[: len(arrived)]
        return arrived

    def _make_room(self, name: str, keys: Iterable[bytes]) -> None:
        """Raise C321 unless all `keys` fit besides what is there."""
        there, new = self._maps[name], set(keys)
        if there.count() + len(new) <= there.info.max_entries:
            return
        needed = len(there.rows().keys() | new)
        if needed > there.info.max_entries:
            raise MendHost(
                "C321",
                f"{name} would need {needed} rows and has room for {there.info.max_entries}",
                hint="use fewer or shorter lists of addresses; what was in force stays in force",
            )


def remove_pins(pin_dir: Path) -> None:
    """Forget the maps: they go with the last program that uses them. None there is fine."""
    pins = pin_dir / LAYOUT
    if pins.is_dir():
        for pin in pins.iterdir():
            pin.unlink()
        pins.rmdir()


def attach_tun(object_path: Path, ifindex: int, address: IPv4Address) -> None:
    """From now on only packets from `address` enter this tunnel, whatever else is said."""
    constants = {".rodata": identity.U32.pack(int(address))}
    opened = libbpf.Object(object_path, constants=constants)
    try:
        clsact.attach(ifindex, EGRESS, opened.program("tunnel_source"))
    finally:
        opened.close()


def tun_attached(ifindex: int) -> IPv4Address | None:
    """The address that may enter this tunnel; None when our program is not the first to judge."""
    number = clsact.our_program(ifindex, EGRESS)
    if number is None or clsact.before_ours(ifindex, EGRESS):
        return None
    with libbpf.program_by_id(number) as fd:
        info = libbpf.read_program_info(fd)
    if info.name != "tunnel_source" or len(info.maps) != 1:
        return None
    with libbpf.map_by_id(next(iter(info.maps))) as constants:
        value = constants.get(identity.U32.pack(0)) or b""
    return IPv4Address(rows_of.to_number(value)) if len(value) == identity.U32.size else None
