"""All drivers as one: lists the parts of a chain that exist, and makes, changes, removes parts.

The drivers do not see each other; what crosses between them (a port's name and its index, a
link and the rows that speak of it) is put together here. Safe to use from several workers.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import NamedTuple, TypeGuard, TypeVar

from chainctl.errors import ChainctlError, MendHost
from chainctl.host.netns import FORWARDING, Namespaces
from chainctl.images.image import Image, ensure_image, list_images, pack_image
from chainctl.images.lock import ImageKind
from chainctl.model.chain import (
    Chain,
    Engine,
    Hop,
    Slot,
    Tunnel,
    VpnConfig,
    chain_of_network,
    client_bridge,
    docker_network,
    gateway_of,
    gateway_port,
)
from chainctl.model.clients import NO_DOCKER, DockerSeen, Neighbour
from chainctl.model.openvpn import OpenVpnConfig, render
from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    Client,
    ClientBridge,
    ClientPolicy,
    DockerNetwork,
    DockerRule,
    FarEnd,
    ForeignLink,
    Forwarding,
    KernelWireGuard,
    Key,
    LanLeg,
    Leg,
    Namespace,
    NftTable,
    NsName,
    Part,
    PortFilter,
    PortName,
    PortRow,
    Route,
    Rule,
    RuntimeKind,
    Tun,
    TunFilter,
    TunnelConfig,
    Up,
    WireTuple,
)
from chainctl.model.secret import Secret
from chainctl.model.wireguard import WireGuardConfig
from chainctl.net import guard
from chainctl.net.bpffs import unmount_bpffs
from chainctl.net.bridge import ensure_bridge, read_bridge, remove_bridge
from chainctl.net.changes import Changes
from chainctl.net.filter import (
    IDENTITY_OBJECT,
    TUN_OBJECT,
    PanelFilter,
    Port,
    WireRow,
    attach_tun,
    mount_bpffs,
    remove_pins,
    tun_attached,
)
from chainctl.net.layout import layout
from chainctl.net.links import Links, lasting_mac
from chainctl.net.netlink import open_netlink
from chainctl.net.policy import PolicyRows, compile_policy
from chainctl.net.rtnl import IFF_NOARP
from chainctl.net.rtnl_read import read_links, read_neighbours
from chainctl.net.tables import Tables
from chainctl.net.uplink import find_fault
from chainctl.runtime.bundle import (
    OPENVPN_DIR,
    OPENVPN_SOCKET,
    ClientSpec,
    openvpn_client,
    wireguard_client,
)
from chainctl.runtime.container import Archive
from chainctl.runtime.docker import DockerClients
from chainctl.runtime.docker_watch import DockerWatch
from chainctl.runtime.openvpn import OpenVpn, OpenVpnStatus
from chainctl.runtime.runc import Clients
from chainctl.runtime.runtime import Running, Runtime
from chainctl.runtime.wireguard import WireGuardDevice, WireGuardStatus
from chainctl.runtime.wireguard_go import WireGuardGo
from chainctl.runtime.wireguard_kernel import KernelWireGuard as KernelDevice
from chainctl.runtime.wireguard_kernel import create_device, kernel_wireguard_available
from chainctl.settings import Settings
from chainctl.store.journal import Journal
from chainctl.supervisor.news import News
from chainctl.supervisor.plan import Change, Remove, Step
from chainctl.supervisor.words import describe_side

T = TypeVar("T")

_FIRST_PORT_IDENTITY = 256
_OPENVPN = "openvpn"
_ENDS = (Client, TunnelConfig)
"""With another one of these a client is another process."""
_STARTERS = 4
"""Clients that start at the same time; each start keeps half a core busy for 60 ms."""


class Prolonging(NamedTuple):
    """A chain's gate that may be open until `until` (boot time in nanoseconds), because of a
    proof at `proved` (in seconds).
    """

    name: str
    number: int
    proved: float
    until: int


class Machine:
    def __init__(
        self, settings: Settings, docker_changed: Callable[[str], None] = lambda _: None
    ) -> None:
        """`docker_changed` is told the chain whose `see_docker` would say something new."""
        self.namespaces = Namespaces(settings.netns_dir)
        self._settings = settings
        self._changes = Changes(self.namespaces)
        self._links = Links(self.namespaces, self._changes)
        self._tables = Tables(self.namespaces, self._changes, settings.run_dir / "tables")
        self._news = News(self.namespaces, self._links, self._changes)
        self._docker = DockerClients(settings, self._packed)
        self._docker_watch = DockerWatch(
            self._docker, lambda network: docker_changed(chain_of_network(network))
        )
        self._runtimes: dict[RuntimeKind, Runtime] = {
            RuntimeKind.EMBEDDED: Clients(settings),
            RuntimeKind.DOCKER: self._docker,
        }
        self._starters = ThreadPoolExecutor(_STARTERS, thread_name_prefix="client")
        self._starting: dict[str, Future[int]] = {}
        self._filter: PanelFilter | None = None
        self._images: dict[ImageKind, Image] = {}
        self._archives: dict[str, Archive] = {}
        self._chains: dict[str, Chain] = {}
        self._configs: dict[str, VpnConfig] = {}
        self._policies: dict[int, tuple[Chain, ClientPolicy | None, PolicyRows | None]] = {}
        self._lock = threading.RLock()
        """Never taken in work for another namespace: its holders wait for the thread of that."""
        self._gates = threading.RLock()
        """Of the gates and of which filter they are in, so that no gate has to shut because
        somebody looks at another chain. Taken after the other one, if both are.
        """

    def take_over(self) -> None:
        """Called by who alone changes things from now on."""
        self._tables.take_over()

    def close(self) -> None:
        """Everything stays in force; the gates shut when their time is over."""
        self._docker_watch.close()
        self._starters.shutdown()
        self._drop_filter()
        self._changes.close()
        self.namespaces.close()

    def configure(self, chain: Chain) -> None:
        """Keep at hand what parts only stand for: keys, and the policy to compare with."""
        self._chains[chain.name] = chain
        for hop in chain.hops:
            for tunnel in hop.tunnels:
                self._configs[chain.client_name(hop, tunnel.slot)] = tunnel.config

    def image(self, kind: ImageKind = ImageKind.WIREGUARD) -> Image:
        """What clients run from; built when it is not here yet."""
        if kind not in self._images:
            self._images[kind] = ensure_image(kind, self._settings)
        return self._images[kind]

    def _packed(self, digest: str) -> Archive:
        """The image as Docker loads it."""
        if digest not in self._archives:
            images = {image.digest: image for image in list_images(self._settings)}
            if digest not in images:
                raise MendHost("C711", f"the image {digest[:12]} is gone", hint="chainctl up")
            packed = pack_image(images[digest])
            ids = (packed.config_digest, packed.manifest_digest)
            self._archives[digest] = Archive(ids, packed.data)
        return self._archives[digest]

    def runtime(self) -> RuntimeKind:
        """Docker if a daemon answers."""
        answers = self._docker.daemon_answers()
        return RuntimeKind.DOCKER if answers else RuntimeKind.EMBEDDED

    def engine(self) -> Engine:
        return Engine.KERNEL if kernel_wireguard_available() else Engine.USERSPACE

    def free_number(self, journal: Journal) -> int:
        """The lowest chain number that neither the journal nor the kernel knows."""
        used = {chain.number for chain in journal.chains()}
        for port in self._ports():
            number = port.removeprefix("c").partition("-")[0]
            if number.isdigit():
                used.add(int(number))
        return next(number for number in range(len(used) + 1) if number not in used)

    def chains_found(self) -> list[str]:
        """Names of the chains that something is left of."""
        pinned = {name.partition(".")[0] for name in self.namespaces.names() if "." in name}
        clients = [name for runtime in self._runtimes.values() for name in runtime.observe()]
        names = [*clients, *self._docker.anchors()]
        return sorted(pinned | {name.partition(".")[0] for name in names})

    def uplink_made_to_forward(self, name: str) -> str:
        """The host's link that forwards only for this chain; "" when none does."""
        return guard.uplink_made_to_forward(self._tables.read(HOST, f"{guard.TABLE}-{name}"))

    def device(self, ns: NsName, link: str) -> tuple[int, int]:
        """What tells a link from a later one of the same name: namespace inode and index."""
        return self.namespaces.inode(ns) or 0, self.namespaces.call(ns, partial(_index, link))

    def find_uplink_fault(self, chain: Chain) -> str:
        """In words; "" when nothing can be seen from here."""
        look = partial(find_fault, chain.wan_link)
        ns = chain.uplink_namespace
        return look() if ns == HOST else self.namespaces.call(ns, look)

    def lan_mac(self, name: str, link: str) -> str:
        """The gateway's own address on a LAN, of a chain that is up already or not yet."""
        return lasting_mac(gateway_of(name), link)

    def watch_client(self, name: str) -> int | None:
        """A pidfd of the VPN client; None when there is none, as for a device of the kernel."""
        return self._runtime_of(name).watch(name)

    def look_at_docker(self, name: str) -> DockerSeen:
        """Who is in the chain's network for containers: as it was heard, or asked now, which takes
        a daemon that hangs ten seconds for each of two answers.
        """
        followed = self._docker_watch.seen(docker_network(name))
        seen = followed or NO_DOCKER
        if followed is None and self._docker.has_socket():
            with suppress(ChainctlError):
                seen = self._docker.look_at_network(docker_network(name))
        return self._with_network(name, seen)

    def follow_docker(self, name: str, known: DockerSeen) -> None:
        """From now on somebody listens to what the daemon says of the chain's network."""
        self._docker_watch.follow(docker_network(name), known)

    def see_docker(self, name: str) -> DockerSeen:
        """As it was heard last, without asking; nothing when nobody listens."""
        return self._with_network(name, self._docker_watch.seen(docker_network(name)) or NO_DOCKER)

    def _with_network(self, name: str, seen: DockerSeen) -> DockerSeen:
        return replace(seen, made=self._docker.network_made(docker_network(name)) is not None)

    def neighbours(self, chain: Chain) -> list[Neighbour]:
        """Who was heard of in the networks of the chain's clients, sorted; nobody while there is no
        gateway. They are shown and nothing is decided by them.
        """
        links = {lan.link for lan in chain.lans}
        with suppress(ChainctlError, OSError):
            seen = self.namespaces.call(chain.gateway, _neighbours)
            return sorted(one for one in seen if one.link in links)
        return []

    def watch_holder(self, ns: NsName) -> int | None:
        """A pidfd of the container that holds the namespace; None when a pin alone does."""
        return self._docker.watch_anchor(ns)

    def shared_parts(self) -> tuple[Key, ...]:
        return (Namespace(PANEL).key, NftTable(PANEL, guard.TABLE, "").key)

    # What is.

    def observe(
        self,
        name: str,
        number: int,
        chain: Chain | None,
        forwarding: Sequence[str] = (),
        *,
        oldest: float = math.inf,
    ) -> list[Part]:
        """Every part of the chain that exists. `forwarding`: links of the host that
        forward for us.

        `oldest`: seconds after which what nobody was heard to change is read again all the same.
        """
        with self._lock:
            mine = [NsName(ns) for ns in self.namespaces.names(f"{name}.")]
            found = self._links.observe(
                [PANEL, *mine],
                port_prefix=f"c{number}-",
                forwarding=forwarding,
                oldest=oldest,
            )
            found = [self._held(part) if isinstance(part, Namespace) else part for part in found]
            held = {part.name for part in found if _is_docker(part)}
            # Docker has it up, again each time it starts, and nobody talks to himself there.
            found = [part for part in found if not (_is_loopback(part) and part.ns in held)]
            found += self._lost_anchors(name)
            found += self._lost_host_leg(found, f"chain{number}")
            present = {part.name for part in found if isinstance(part, Namespace)}
            places = [(ns, guard.TABLE) for ns in mine]
            if self.namespaces.inode(PANEL):
                places.append((PANEL, guard.TABLE))
            places += [(ns, guard.PUBLISHED_TABLE) for ns in mine if ns.endswith(".gateway")]
            places.append((HOST, f"{guard.TABLE}-{name}"))
            places.append((HOST, guard.own_network_table(name)))
            found += self._own_network(name)
            found += self._tables.observe(places, oldest=oldest)
            docker = self._tables.observe_docker_rule(f"chain{number}")
            found += [docker] if docker else []
            if PANEL in present:
                found += self._observe_filter(number, chain)
            found += self._observe_tunnels(name, found, chain)
            return found

    def _own_network(self, name: str) -> Iterator[Part]:
        bridge = read_bridge(self.namespaces, client_bridge(name))
        if bridge is None:
            return
        yield bridge
        made = self._docker.network_made(docker_network(name))
        if made is not None:
            yield made

    def _held(self, part: Namespace) -> Namespace:
        """With what holds it: the supervisor's own pin, or a container, or one that is gone."""
        if part.name not in self._docker.anchors(part.name):
            return part
        held = self._docker.anchored(part.name) == self.namespaces.inode(part.name)
        return replace(part, runtime=RuntimeKind.DOCKER if held else None)

    def _lost_anchors(self, name: str) -> Iterator[Part]:
        """Containers for a namespace that was not pinned yet, or is no more."""
        for ns in self._docker.anchors(f"{name}."):
            if self.namespaces.inode(ns) is None:
                yield Namespace(NsName(ns), runtime=None)

    def _lost_host_leg(self, found: Iterable[Part], link: str) -> list[Part]:
        """The host's leg whose panel is gone. Nobody else makes a veth without ARP."""
        if any(part.key == ("link", HOST, link) for part in found):
            return []
        seen = self._links.sight(HOST).links
        ours = [one for one in seen if one.name == link and one.kind == "veth"]
        return [ForeignLink(HOST, link, "veth") for one in ours if one.flags & IFF_NOARP]

    def _observe_filter(self, number: int, chain: Chain | None) -> Iterator[Part]:
        self._replace_filter_without_pins()
        prefix = f"c{number}-"
        names = {index: PortName(name) for name, index in self._ports().items()}
        mine = {index: name for index, name in names.items() if name.startswith(prefix)}
        table = self._opened()
        for index, name in mine.items():
            if row := table.port(index):
                gate = names.get(row.gate)
                yield PortRow(name, row.mode, row.address, row.far_mtu, row.scope, gate)
            if (far := table.far(index)) in names:
                yield FarEnd(name, names[far])
        for wire in table.wires(mine):
            ends = wire.source, wire.source_port, wire.destination, wire.destination_port
            yield WireTuple(mine[wire.ifindex], *ends, wire.protocol, wire.fragments)
        yield from self._observe_policy(number + 1, chain)
        attached = self._in_panel(lambda: [index for index in mine if table.attached(index)])
        yield from (PortFilter(mine[index]) for index in attached)

    def _observe_policy(self, scope: int, chain: Chain | None) -> Iterator[Part]:
        table = self._opened()
        wanted, compiled = self._compiled(chain, scope) if chain else (None, None)
        if wanted is not None and table.policy(scope) == compiled:
            yield wanted
        elif scope in table.scopes():
            yield ClientPolicy(scope, (), (), ())

    def _compiled(self, chain: Chain, scope: int) -> tuple[ClientPolicy | None, PolicyRows | None]:
        """The chain's policy and its rows, worked out once for a chain."""
        known = self._policies.get(scope)
        if known is None or known[0] is not chain:
            wanted = _policy_of(chain, scope)
            known = chain, wanted, compile_policy(wanted) if wanted else None
            self._policies[scope] = known
        return known[1:]

    def _observe_tunnels(
        self, name: str, found: Iterable[Part], chain: Chain | None
    ) -> Iterator[Part]:
        tunnels = [part for part in found if isinstance(part, Tun | KernelWireGuard)]
        for part in tunnels:
            address = self.namespaces.call(part.ns, partial(_tun_filter, part.link))
            if address is not None:
                yield TunFilter(part.ns, part.link, address)
        by_inode = {self.namespaces.inode(part.ns): part.ns for part in tunnels}
        for kind, client, running in self._observe_clients(name):
            if running is None:
                yield Client(client, NsName("?"), "?", -1, "?", kind)
                continue
            ns = by_inode.get(running.netns_inode, NsName("?"))
            yield Client(client, ns, running.link, running.uid, running.image, kind)
            if running.kind == _OPENVPN:
                yield TunnelConfig(client, ns, running.link, running.config)
            else:
                yield from self._observe_config(client, ns, running.link, Engine.USERSPACE)
        # A device of the kernel has no process, so it is found by its link.
        kernel = {(part.ns, part.link) for part in tunnels if isinstance(part, KernelWireGuard)}
        if chain is None:
            return
        for hop in chain.hops:
            for tunnel in hop.tunnels:
                ns, link = chain.namespace(hop), tunnel.slot.link
                if (ns, link) in kernel:
                    client = chain.client_name(hop, tunnel.slot)
                    yield from self._observe_config(client, ns, link, Engine.KERNEL)

    def _observe_clients(self, chain: str) -> Iterator[tuple[RuntimeKind, str, Running | None]]:
        for kind, runtime in self._runtimes.items():
            for client, running in runtime.observe(f"{chain}.").items():
                yield kind, client, running

    def _observe_config(
        self, name: str, ns: NsName, link: str, engine: Engine
    ) -> Iterator[TunnelConfig]:
        with suppress(ChainctlError):
            digest = self._wireguard(name, ns, link, engine).read().digest
            if digest is not None:
                yield TunnelConfig(name, ns, link, digest)

    # What to do.

    def make(self, part: Part) -> None:
        """Bring it into being; the second time nothing happens.

        A client is only begun, so that several start at the same time. What needs it waits for
        it, at the latest `settle`, and raises what went wrong.
        """
        match part:
            case Namespace():
                self._make_namespace(part)
            case Leg():
                self._links.make(part)
                self._forget_port(part.port)
            case LanLeg() | Tun() | Address() | Up() | Route() | Rule() | Forwarding():
                self._links.make(part)
            case NftTable():
                self._tables.write(part)
            case DockerRule():
                self._tables.make_docker_rule(part)
            case PortRow():
                self._put_port(part)
            case FarEnd(port, far):
                table, ends = self._opened(), (self._port_index(port), self._port_index(far))
                self._in_panel(lambda: table.put_far(*ends))
            case WireTuple():
                self._opened().put_wires([self._wire(part)])
            case ClientPolicy():
                self._opened().put_policy(part)
            case PortFilter(port):
                self._attach(port)
            case TunFilter(ns, link, address):
                self.namespaces.call(ns, lambda: attach_tun(TUN_OBJECT, _index(link), address))
            case KernelWireGuard(ns, link, mtu):
                self.namespaces.call(ns, lambda: create_device(link, mtu))
            case Client(name):
                start = self._runtimes[part.runtime].start
                self._starting[name] = self._starters.submit(start, self._client(part))
            case TunnelConfig(name, ns, link):
                self._wait_until_started(name)
                self._configure_tunnel(name, ns, link)
            case ClientBridge(link):
                ensure_bridge(self.namespaces, link)
            case DockerNetwork():
                self._docker.make_network(part)
            case ForeignLink():
                raise AssertionError("nobody wants a foreign link")

    def change(self, old: Part, new: Part) -> None:
        match old, new:
            case ((Namespace() | Leg() | Tun() | Route()), (Namespace() | Leg() | Tun() | Route())):
                self._links.change(old, new)
            case WireTuple(), WireTuple():
                self._opened().put_wires([self._wire(new)])
            case _:
                # Rows, tables, filters and configurations are replaced by being written.
                self.make(new)

    def remove(self, part: Part) -> None:
        """Take it away; nothing happens when it is not there."""
        match part:
            case Leg():
                self._forget_port(part.port)
                self._links.remove(part)
            case Namespace(name):
                self._links.remove(part)
                self._tables.forget(name)
                self._docker.release(name)
            case LanLeg() | Tun() | Address() | Up() | Route() | Rule() | Forwarding():
                self._links.remove(part)
            case ForeignLink():
                self._links.remove(part)
            case KernelWireGuard(ns, link):
                self._links.remove(ForeignLink(ns, link, "wireguard"))
            case ClientBridge(link):
                if not self._docker.uses_bridge(link):
                    remove_bridge(self.namespaces, link)
            case DockerNetwork():
                self._docker.remove_network(part.name)
            case NftTable() if self._guards_clients(part):
                pass  # Who is still connected there gets no other way out.
            case NftTable():
                self._tables.remove(part)
            case DockerRule():
                self._tables.remove_docker_rule(part)
            case PortRow(port):
                self._opened().remove_port(self._port_index(port))
            case FarEnd(port):
                table, index = self._opened(), self._port_index(port)
                self._in_panel(lambda: table.remove_far(index))
            case WireTuple():
                self._opened().remove_wires([self._wire(part)])
            case ClientPolicy(scope):
                self._opened().remove_policy(scope)
            case PortFilter(port):
                table, index = self._opened(), self._port_index(port)
                self._in_panel(lambda: table.detach(index))
            case Client(name):
                with suppress(ChainctlError):
                    self._wait_until_started(name)
                self._runtimes[part.runtime].stop(name)
            case TunFilter() | TunnelConfig():
                pass  # They go with the device and with the client.

    def settle(self, name: str) -> None:
        """No client of the chain is in the middle of starting. Raises why the first one that did
        not start did not, when all others have.
        """
        failures: list[ChainctlError | OSError] = []
        for client in [key for key in list(self._starting) if key.startswith(f"{name}.")]:
            try:
                self._wait_until_started(client)
            except (ChainctlError, OSError) as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _wait_until_started(self, client: str) -> None:
        starting = self._starting.pop(client, None)
        if starting is not None:
            starting.result()

    def clean(self, name: str, number: int, *, last: bool) -> None:
        """After the last part: rows of ports that are no more, and with the last chain the maps."""
        self._docker_watch.leave(docker_network(name))
        with self._lock:
            self._chains.pop(name, None)
            self._policies.pop(number + 1, None)
            for client in [key for key in list(self._configs) if key.startswith(f"{name}.")]:
                del self._configs[client]
            self._tables.tidy(name, last=last)
            self.namespaces.tidy(f"{name}.")
            if last:
                self.clear()

    def clear(self) -> None:
        """There is no chain any more: what all of them shared goes. May be called twice."""
        with self._lock:
            self._links.remove(Namespace(PANEL))
            self._tables.forget(PANEL)
            self.namespaces.tidy()
            self._drop_filter()
            remove_pins(self._settings.bpf_dir)
            unmount_bpffs(self._settings.bpf_dir)
            for runtime in self._runtimes.values():
                runtime.tidy()

    def _guards_clients(self, part: NftTable) -> bool:
        chain = guard.chain_of_own_network(part.table) if part.ns == HOST else None
        # Also one that somebody meddled with: who is connected there stays connected.
        return chain is not None and read_bridge(self.namespaces, client_bridge(chain)) is not None

    # The gate.

    def gate_until(self, number: int) -> int:
        """Boot time in nanoseconds until which the chain's gate is open; 0: it is shut."""
        with self._gates:
            index = self._ports().get(gateway_port(number))
            return 0 if index is None else self._opened().gate(index)

    def open_gate(self, wanted: Prolonging) -> None:
        """Both copies: in the filter, and in the gateway's nft table."""
        ((_, failed),) = self.prolong(lambda _: [wanted])
        if failed is not None:
            raise failed

    def prolong(
        self, due: Callable[[Callable[[int], int]], Sequence[Prolonging]]
    ) -> list[tuple[Prolonging, ChainctlError | None]]:
        """Both copies of all gates that are `due`, each with what has kept it from being opened.

        `due` is asked while nobody else opens or shuts a gate; it is given what `gate_until` says
        of a chain's number then. No gate is open in the filter alone.
        """
        with self._gates:
            indexes = self._ports()
            table = self._opened()
            gates = table.gates()
            wanted = due(lambda number: gates.get(indexes.get(gateway_port(number), 0), 0))
            ports = [gateway_port(one.number) for one in wanted]
            failures: list[ChainctlError | None] = [
                None if port in indexes else _missing(port) for port in ports
            ]
            there = [place for place, failed in enumerate(failures) if failed is None]
            gateways = [(gateway_of(wanted[place].name), wanted[place].until) for place in there]
            for place, refused in zip(there, self._tables.open_gates(gateways), strict=True):
                failures[place] = refused
            opened = {
                indexes[ports[place]]: wanted[place].until
                for place in there
                if failures[place] is None
            }
            table.open_gates(opened)
            return list(zip(wanted, failures, strict=True))

    def close_gate(self, name: str, number: int) -> None:
        """Both copies; each is tried whatever becomes of the other."""
        with self._gates:
            index = self._ports().get(gateway_port(number))
            try:
                if index is not None:
                    self._opened().close_gate(index)
            finally:
                self._tables.close_gate(gateway_of(name))

    # What others do.

    @property
    def heard(self) -> tuple[int, ...]:
        """Descriptors that become readable when somebody changes something."""
        return self._changes.routing.fileno(), self._changes.tables.fileno()

    def news(self, *, rows: bool, pins: bool) -> frozenset[str] | None:
        """Chains of which something changed since the last call; None: it may be any.

        `rows`: compare the filter's rows as well, and ask for programs that nobody told of.
        `pins`: something was mounted or unmounted.
        """
        numbers = {chain.number: name for name, chain in list(self._chains.items())}
        with self._lock:
            found: frozenset[str] = frozenset()
            if rows and self.namespaces.inode(PANEL) is not None:
                if self._replace_filter_without_pins():
                    return None
                found = self._news.of_rows(self._opened(), numbers)
            touched = self._news.of_changes(numbers, pins=pins)
        return None if touched is None else found | touched

    def tunnel_status(self, chain: Chain, hop: Hop) -> WireGuardStatus | OpenVpnStatus | None:
        """What the engine says of the hop's tunnel; None when it does not answer."""
        with suppress(ChainctlError):
            if hop.tunnel.engine is Engine.OPENVPN:
                return self.openvpn_status(chain, hop, hop.tunnel)
            return self._wireguard_of(chain, hop, hop.tunnel).read()
        return None

    def openvpn_status(self, chain: Chain, hop: Hop, tunnel: Tunnel) -> OpenVpnStatus | None:
        """As `tunnel_status`, for either of the hop's tunnels."""
        with suppress(ChainctlError):
            return self._openvpn(chain.client_name(hop, tunnel.slot)).read()
        return None

    def go_on(self, chain: Chain, hop: Hop, tunnel: Tunnel) -> OpenVpnStatus | None:
        """Let an OpenVPN client connect that waits for it; None when it does not answer."""
        config = tunnel.config
        assert isinstance(config, OpenVpnConfig), "only OpenVPN waits"
        with suppress(ChainctlError):
            return self._openvpn(chain.client_name(hop, tunnel.slot)).go_on(
                config.profile.credentials
            )
        return None

    def start_over(self, chain: Chain, hop: Hop, tunnel: Tunnel) -> None:
        """Have an OpenVPN client connect anew, as soon as it is told to go on."""
        with suppress(ChainctlError):
            self._openvpn(chain.client_name(hop, tunnel.slot)).start_over()

    def shake_anew(self, chain: Chain, hop: Hop, tunnel: Tunnel) -> None:
        """Have a WireGuard tunnel that has no session begin its handshake now."""
        config = tunnel.config
        assert isinstance(config, WireGuardConfig), "OpenVPN starts over"
        with suppress(ChainctlError):
            self._wireguard_of(chain, hop, tunnel).shake_anew(config)

    def take_leave(self, steps: Iterable[Step]) -> None:
        """Tell servers that their tunnels end with these steps, while there is a way to them."""
        ending = {
            part.name
            for step in steps
            if isinstance(step, Change | Remove)
            and isinstance(part := step.old if isinstance(step, Change) else step.part, _ENDS)
        }
        # Inside-out: what an inner one says goes through the outer one.
        for name in sorted(ending, reverse=True):
            for runtime in self._runtimes.values():
                running = runtime.observe(name).get(name)
                if running is not None and running.kind == _OPENVPN:
                    with suppress(ChainctlError):
                        OpenVpn(runtime.control_dir(name) / OPENVPN_SOCKET).leave()

    # Between the drivers.

    def _make_namespace(self, part: Namespace) -> None:
        if part.name == PANEL and self.namespaces.inode(PANEL) is None:
            # A new panel counts its links from 1 again: old rows must not speak of new ports.
            with self._lock:
                self._drop_filter()
                remove_pins(self._settings.bpf_dir)
        if part.runtime is RuntimeKind.DOCKER:
            pause = ensure_image(ImageKind.PAUSE, self._settings)
            place = self._docker.anchor(part.name, pause.digest, pause.entrypoint)
            settings = FORWARDING if part.forwarding else {}
            self.namespaces.adopt(part.name, place, settings)
        else:
            self._links.make(part)

    def _opened(self) -> PanelFilter:
        """Ask outside of namespaces: who has the lock may be waiting for the one thread there."""
        assert not self.namespaces.is_here, "locks come before namespaces"
        with self._gates:
            if self._filter is None:
                mount_bpffs(self._settings.bpf_dir)
                self._filter = PanelFilter.open(IDENTITY_OBJECT, self._settings.bpf_dir)
            return self._filter

    def _replace_filter_without_pins(self) -> bool:
        """What is attached goes on without pins, by its old rows: shut it, load a new one.

        Returns whether it was so.
        """
        with self._gates:
            table = self._opened()
            if table.pins_whole():
                return False
            for index in table.gates():
                table.close_gate(index)
            self._drop_filter()
            mount_bpffs(self._settings.bpf_dir)
            remove_pins(self._settings.bpf_dir)
            return True

    def _drop_filter(self) -> None:
        with self._gates:
            if self._filter is not None:
                self._filter.close()
                self._filter = None

    def _put_port(self, part: PortRow) -> None:
        index = self._port_index(part.port)
        gate = self._port_index(part.gate) if part.gate else 0
        identity = _FIRST_PORT_IDENTITY + index
        self._opened().put_port(
            index, Port(identity, part.address, part.far_mtu, part.mode, part.scope, gate)
        )

    def _attach(self, port: PortName) -> None:
        table, index = self._opened(), self._port_index(port)

        def attach() -> None:
            table.remove_foreign_filters(index)
            table.attach(index)
            if not table.attached(index):
                raise MendHost(
                    "C323",
                    f"something else judges packets before the filter {describe_side(port)}:"
                    f" {', '.join(table.foreign_filters(index))}",
                    hint="detach it",
                )

        self._in_panel(attach)

    def _forget_port(self, port: PortName) -> None:
        """No row may speak of this index: neither of a link that goes nor of one just made."""
        index = self._ports().get(port)
        if index is None:
            return
        with self._lock:
            table = self._opened()
            table.close_gate(index)
            table.remove_port(index)
            self._in_panel(lambda: table.remove_far(index))
            table.remove_wires_of(index)

    def _wire(self, part: WireTuple) -> WireRow:
        return WireRow(
            self._port_index(part.port),
            part.source,
            part.source_port,
            part.destination,
            part.destination_port,
            part.protocol,
            part.fragments,
        )

    def _client(self, part: Client) -> ClientSpec:
        config = self._configs[part.name]
        if isinstance(config, OpenVpnConfig):
            return self._openvpn_client(part, config)
        image = self.image()
        return wireguard_client(
            part.name,
            netns=self.namespaces.path(part.ns),
            link=part.link,
            uid=part.uid,
            image=part.image,
            root=image.root,
            program=image.entrypoint[0],
        )

    def _openvpn_client(self, part: Client, config: OpenVpnConfig) -> ClientSpec:
        image = self.image(ImageKind.OPENVPN)
        chain, hop, _ = self._tunnel(part.name)
        text = render(
            config,
            link=part.link,
            local=chain.out_leg(hop),
            management=f"{OPENVPN_DIR}/{OPENVPN_SOCKET}",
        )
        return openvpn_client(
            part.name,
            netns=self.namespaces.path(part.ns),
            link=part.link,
            uid=part.uid,
            image=part.image,
            root=image.root,
            program=image.entrypoint[0],
            config=Secret(text),
            config_digest=config.digest,
        )

    def _tunnel(self, client: str) -> tuple[Chain, Hop, Slot]:
        """Whose client it is."""
        chain = self._chains[client.partition(".")[0]]
        for hop in chain.hops:
            for slot in Slot:
                if chain.client_name(hop, slot) == client:
                    return chain, hop, slot
        raise AssertionError(f"{client} is a client of no hop")

    def _configure_tunnel(self, name: str, ns: NsName, link: str) -> None:
        config = self._configs[name]
        chain, hop, slot = self._tunnel(name)
        tunnel = next(tunnel for tunnel in hop.tunnels if tunnel.slot is slot)
        if isinstance(config, OpenVpnConfig):
            # It reads its configuration once: another one is another process.
            self._runtime_of(name).start(
                self._client(Client(name, ns, link, chain.uid(hop, slot), tunnel.image))
            )
        else:
            self._wireguard(name, ns, link, tunnel.engine).configure(config)

    def _wireguard_of(self, chain: Chain, hop: Hop, tunnel: Tunnel) -> WireGuardDevice:
        name, ns = chain.client_name(hop, tunnel.slot), chain.namespace(hop)
        return self._wireguard(name, ns, tunnel.slot.link, tunnel.engine)

    def _wireguard(self, name: str, ns: NsName, link: str, engine: Engine) -> WireGuardDevice:
        if engine is Engine.KERNEL:
            return KernelDevice(link, partial(self.namespaces.call, ns))
        return WireGuardGo(self._runtime_of(name).control_dir(name) / f"{link}.sock")

    def _openvpn(self, name: str) -> OpenVpn:
        runtime = self._runtime_of(name)
        running = runtime.observe(name).get(name)
        digest = running.config if running else ""
        return OpenVpn(runtime.control_dir(name) / OPENVPN_SOCKET, digest)

    def _runtime_of(self, client: str) -> Runtime:
        """What runs it, or would."""
        chain = self._chains.get(client.partition(".")[0])
        return self._runtimes[chain.runtime if chain else RuntimeKind.EMBEDDED]

    def _ports(self) -> Mapping[str, int]:
        """Index by name of everything in the panel; empty when there is none."""
        if self.namespaces.inode(PANEL) is None:
            return {}
        return self._links.sight(PANEL).indexes

    def _port_index(self, port: PortName) -> int:
        index = self._ports().get(port)
        if index is None:
            raise _missing(port)
        return index

    def _in_panel(self, work: Callable[[], T]) -> T:
        """`work` runs on another thread, so it may want no lock that somebody holds who waits."""
        return self.namespaces.call(PANEL, work)


def _missing(port: PortName) -> MendHost:
    what = f"the connection {describe_side(port)} is missing"
    return MendHost("C325", what, hint="chainctl up")


def _is_docker(part: Part) -> TypeGuard[Namespace]:
    return isinstance(part, Namespace) and part.runtime is RuntimeKind.DOCKER


def _is_loopback(part: Part) -> TypeGuard[Up | Address]:
    return isinstance(part, Up | Address) and part.link == "lo"


def _policy_of(chain: Chain, scope: int) -> ClientPolicy | None:
    policies = [part for part in layout(chain) if isinstance(part, ClientPolicy)]
    return next((policy for policy in policies if policy.scope == scope), None)


def _neighbours() -> list[Neighbour]:
    with open_netlink() as link:
        names = {seen.index: seen.name for seen in read_links(link)}
        seen = read_neighbours(link)
    return [Neighbour(names.get(index, ""), address, mac) for index, address, mac in seen]


def _index(link: str) -> int:
    return socket.if_nametoindex(link)


def _tun_filter(link: str) -> IPv4Address | None:
    return tun_attached(_index(link))
