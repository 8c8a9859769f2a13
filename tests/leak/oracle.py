"""The leak oracle: proves that nothing was on a wire that must not be there.

    with Oracle(directory) as oracle:
        oracle.client(client, "eth0", address="192.168.10.50", gateway="192.168.10.254")
        oracle.watch(internet, "up0", "W1", allow=[Flow(...)], hides=[Inside("192.168.10.0/24")])
        oracle.watch(target, "eth0", "X", allow=[Anything()], may_carry_canaries=True)
        ...
        oracle.send(Udp("100.100.100.100", 7), expect=Expect.DELIVERED)
        oracle.judge().assert_clean()

A verdict is PASS only if every frame was captured, every control frame was seen, everything
that was sent was seen on the client's own link, and nothing broke a rule. Nothing is judged
while traffic flows: see `capture`. `docs/leak-oracle.md` is the guide.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from tests.leak.allow import Allowed, Hidden, Layer
from tests.leak.canary import (
    ODD,
    PLAIN,
    Client,
    Dns,
    Emission,
    Expect,
    Family,
    Frames,
    Order,
    Udp,
)
from tests.leak.capture import RING_BYTES, Capture, Sniffer
from tests.leak.frames import EXPERIMENTAL, Frame, ethernet
from tests.leak.namespace import inside, read_links, send_frame
from tests.leak.pcap import write_pcap
from tests.leak.point import Point, Role
from tests.leak.verdict import Delivery, Evidence, Verdict, weigh

ANY = None
"""Every interface of a namespace that is not watched by its name, later ones included."""

_SENDER = Path(__file__).with_name("sender.py")
_CONTROL_TO = bytes.fromhex("02c0de000001")
"""Nobody's address, so that a control frame ends at the other end of its wire."""

_Key: TypeAlias = tuple[int, int]


class Sending:
    """Canaries on their way, until `wait` or `stop` says how many went out."""

    def __init__(self, emission: Emission, process: subprocess.Popen[bytes]) -> None:
        self.emission = emission
        self.process = process
        self._reported = False
        assert process.stdout is not None
        # Unbuffered: what `readline` took in beyond the line would be lost to `communicate`.
        self._first_line = process.stdout.readline()

    def wait(self, timeout: float = 660.0) -> Emission:
        """Returns when all are sent, which takes ten minutes at most; the second time at once."""
        if not self._reported:
            try:
                rest, complaints = self.process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                rest, complaints = self.process.communicate()
            self._reported = True
            self._note((self._first_line + rest).decode(), complaints.decode())
        return self.emission

    def stop(self) -> Emission:
        """Send no more."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait(10.0)

    def _note(self, output: str, complaints: str) -> None:
        *_, last = output.splitlines() or [""]
        if not last.startswith("{"):
            died = f"the sender died with status {self.process.returncode}"
            self.emission.errors.append(f"{died}: {complaints.strip()[-300:]}")
            return
        report = json.loads(last)
        self.emission.sent = report["sent"]
        self.emission.errors += report["errors"]


class Oracle:
    """One run: watch, send, judge. Namespaces are given by path, as `ip netns` makes them.

    Nobody else may use the directory. `ring_bytes` is what the kernel holds for each namespace.
    """

    def __init__(self, directory: Path, *, test: str = "", ring_bytes: int = RING_BYTES) -> None:
        self.directory = directory
        self.verdict: Verdict | None = None
        """What `judge` said."""
        self.sniffer = Sniffer()
        self._test = test
        self._ring_bytes = ring_bytes
        self._family = Family()
        self._captures: dict[_Key, Capture] = {}
        self._points: dict[str, Point] = {}
        self._clients: dict[str, tuple[Path, Client]] = {}
        self._sendings: dict[str, Sending] = {}
        self._controls: dict[bytes, str] = {}
        self._automatic: list[str] = []
        self._uncounted: set[_Key] = set()

    def __enter__(self) -> Oracle:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sniffer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sending in self._sendings.values():
            sending.stop()
        for capture in self._captures.values():
            self.sniffer.remove(capture)
            capture.close()
        self.sniffer.stop()

    @property
    def watching(self) -> bool:
        return bool(self._points)

    def client(
        self, namespace: Path, interface: str, *, address: str, gateway: str, name: str = "C0"
    ) -> None:
        """Who sends canaries. What leaves by this interface proves that they were sent."""
        self._clients[name] = (namespace, Client(interface, address, gateway))
        self._add(name, namespace, interface, Role.CLIENT)

    def watch(
        self,
        namespace: Path,
        interface: str | None,
        name: str,
        *,
        allow: Sequence[Allowed] = (),
        hides: Sequence[Hidden] = (),
        shows: Sequence[Layer] = (),
        may_carry_canaries: bool = False,
        control: bool = True,
        strict_counters: bool = True,
    ) -> None:
        """Judge what passes at `interface` (or ANY), both directions, from now on.

        Only what `allow` lists may pass, and nothing that `hides` describes; every layer of
        `shows` has to be seen. Unless `control` is false a control frame leaves by the interface
        now and at the end: it shows to whoever sits at the other end as an unknown ethertype.
        `strict_counters=False` for a namespace whose drivers count otherwise than they deliver.
        """
        role = Role.BEYOND if may_carry_canaries else Role.WIRE
        key = self._add(name, namespace, interface, role, allow=allow, hides=hides, shows=shows)
        if not strict_counters:
            self._uncounted.add(key)
        if control:
            self._automatic.append(name)
            self._send_control(name, self._captures[key].inside, interface)

    def control(self, name: str, namespace: Path, interface: str) -> None:
        """Send a control frame for point `name` from here, usually its wire's other end.

        Raises ValueError when nothing can be sent from there.
        """
        with namespace.open("rb") as entrance:
            sent = self._send_control(name, partial(inside, entrance.fileno()), interface)
        if not sent:
            raise ValueError(f"no frame can be sent from {interface} in {namespace}")

    def start(
        self, order: Order, *, expect: Expect = Expect.STOPPED, name: str = "", client: str = "C0"
    ) -> Sending:
        """Begin to send, and return when the first packet is about to go out.

        Sending ends by itself, with `Sending.stop`, or when the run is judged.
        """
        kind = type(order).__name__.lower()
        title = name or f"{kind} to {order.destination}:{order.port}"
        if title in self._sendings:
            title = f"{title} ({len(self._sendings) + 1})"
        namespace, who = self._clients[client]
        canary = self._family.new(title)
        emission = Emission(title, canary, expect, order.destination, order.asked)
        process = subprocess.Popen(
            ["nsenter", f"--net={namespace}", sys.executable, "-I", str(_SENDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert process.stdin is not None
        # A sender that could not start says so when it is waited for.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order.spelled(canary, who)).encode() + b"\n")
        self._sendings[title] = Sending(emission, process)
        return self._sendings[title]

    def send(
        self, order: Order, *, expect: Expect = Expect.STOPPED, name: str = "", client: str = "C0"
    ) -> Emission:
        """Send all of it and return what went out."""
        return self.start(order, expect=expect, name=name, client=client).wait()

    def battery(
        self,
        endpoints: Sequence[tuple[str, int]],
        *,
        resolver: str = "",
        expect: Expect = Expect.STOPPED,
        client: str = "C0",
    ) -> list[Emission]:
        """Everything the client can do to each (address, port), and a question to a resolver.

        `expect` is about what a chain carries; frames of odd kinds are to be stopped always.
        """
        plain: list[Order] = [
            order
            for address, port in endpoints
            for order in (
                Udp(address, port),
                Udp(address, port, connected=True),
                Frames(PLAIN, address, port),
            )
        ]
        if resolver:
            plain.append(Dns(resolver))
        odd = [Frames(ODD, address, port) for address, port in endpoints]
        running = [self.start(order, expect=expect, client=client) for order in plain]
        running += [self.start(order, client=client) for order in odd]
        return [sending.wait() for sending in running]

    def release(self, namespace: Path) -> None:
        """Watch this namespace no longer; what was seen will be judged.

        Until then it lives on, even when it is deleted.
        """
        capture = next(c for c in self._captures.values() if c.path == namespace)
        self._end_controls(capture)
        self.sniffer.remove(capture)
        capture.finish()

    def judge(self, *, without_canaries: bool = False) -> Verdict:
        """End the run and weigh what was seen; the second time the same verdict.

        A run in which nothing was sent proves nothing, unless it is meant to be
        `without_canaries`: then only the allow-lists speak.
        """
        if self.verdict is None:
            for sending in self._sendings.values():
                sending.stop()
            for capture in self._captures.values():
                if not capture.finished:
                    self._end_controls(capture)
                self.sniffer.remove(capture)
                capture.finish()
            self.verdict = self._weigh(without_canaries)
            self.verdict.write(self.directory / "verdict.json")
        return self.verdict

    def _add(
        self,
        name: str,
        namespace: Path,
        interface: str | None,
        role: Role,
        *,
        allow: Sequence[Allowed] = (),
        hides: Sequence[Hidden] = (),
        shows: Sequence[Layer] = (),
    ) -> _Key:
        if name in self._points:
            raise ValueError(f"there is a point {name!r} already")
        key = _key(namespace)
        if key not in self._captures:
            capture = Capture(namespace, self.directory, ring_bytes=self._ring_bytes)
            self._captures[key] = capture
            self.sniffer.add(capture)
        self._points[name] = Point(
            name, self._captures[key], interface, role, allow=allow, hides=hides, shows=shows
        )
        return key

    def _send_control(
        self, name: str, run: Callable[[Callable[[], bool]], bool], interface: str | None
    ) -> bool:
        """Send one by `interface` of the namespace that `run` works in."""
        words = b"control %032d" % secrets.randbelow(10**32)
        frame = ethernet(words, EXPERIMENTAL, destination=_CONTROL_TO)
        sent = run(partial(_send_somewhere, interface, frame))
        if sent:
            self._controls[frame[12:]] = name
        return sent

    def _end_controls(self, capture: Capture) -> None:
        for name in self._automatic:
            point = self._points[name]
            if point.capture is capture:
                self._send_control(name, capture.inside, point.interface)

    def _weigh(self, without_canaries: bool) -> Verdict:
        sent = {name: sending.emission for name, sending in self._sendings.items()}
        controls_seen: set[bytes] = set()
        lost = [f"the sniffer died: {self.sniffer.failure}"] if self.sniffer.failure else []
        counters_equal = True
        for key, capture in self._captures.items():
            missing = self._examine(capture, sent, controls_seen)
            if missing and key not in self._uncounted:
                counters_equal = False
                lost.append(f"{self._label(capture)}: counted but not captured: {missing}")
            if capture.drops or capture.truncated:
                lost.append(
                    f"{self._label(capture)}: {capture.drops} frames dropped, "
                    f"{capture.truncated} truncated by the capture"
                )
        for point in self._points.values():
            point.conclude(self._family, sent)
        control = {
            name: self._control_seen(name, controls_seen)
            for name, point in self._points.items()
            if point.role is not Role.CLIENT
        }
        c0 = self._count_emissions(sent)
        delivered = {name: self._delivery(name) for name in sent}
        unproved = [
            *(f"{name}: control not seen" for name, seen in control.items() if not seen),
            *self._unproved_sending(sent, c0, without_canaries),
            *(
                f"{name}: nothing of it arrived"
                for name, emission in sent.items()
                if emission.expect is Expect.DELIVERED and not delivered[name].count
            ),
            *(
                f"{point.name}: layer {layer} not seen"
                for point in self._points.values()
                for layer in point.not_shown
            ),
        ]
        judged = [p for p in self._points.values() if p.role is not Role.CLIENT]
        evidence = Evidence(
            lost,
            unproved,
            {point.name: point.leaked for point in judged},
            {point.name: point.illegal for point in judged},
        )
        outcome, why = weigh(evidence)
        return Verdict(
            test=self._test,
            outcome=outcome,
            why=why,
            sent={name: emission.sent for name, emission in sent.items()},
            c0=c0,
            leaks=tuple(leak for point in judged for leak in point.leaks),
            leaked=evidence.leaked,
            illegal=evidence.illegal,
            frames={point.name: point.frames for point in judged},
            drops=sum(capture.drops for capture in self._captures.values()),
            gaps=tuple(
                f"{self._label(capture)}: {name} went away"
                for capture in self._captures.values()
                for name in capture.gone
            ),
            counters_equal=counters_equal,
            control=control,
            delivered=delivered,
            pcaps=tuple(self._save_captures()) if why else (),
        )

    def _examine(
        self, capture: Capture, sent: dict[str, Emission], controls_seen: set[bytes]
    ) -> dict[str, int]:
        """Show every frame to its point; return what the capture lacks by the counters."""
        counts: Counter[int] = Counter()
        for frame in capture.frames():
            counts[frame.interface] += 1
            link = capture.name(frame.interface, frame.when)
            point = self._point_of(capture, link)
            control = self._control_of(frame)
            if control is None:
                if point is not None:
                    point.examine(frame, link, self._family, sent)
            elif self._aimed_at(control, capture, link):
                controls_seen.add(control)
        return capture.missing(counts)

    def _point_of(self, capture: Capture, link: str) -> Point | None:
        rest = None
        for point in self._points.values():
            if point.capture is capture:
                if point.interface == link:
                    return point
                if point.interface is ANY:
                    rest = point
        return rest

    def _control_of(self, frame: Frame) -> bytes | None:
        """The control a frame is, to the last byte."""
        rest = frame.data[12:]
        return rest if rest[:2] == b"\x88\xb5" and rest in self._controls else None

    def _aimed_at(self, control: bytes, capture: Capture, link: str) -> bool:
        point = self._points[self._controls[control]]
        # For ANY it leaves by the first interface that is up, which may have a point of its own.
        return point.capture is capture and point.interface in (link, ANY)

    def _control_seen(self, name: str, seen: set[bytes]) -> bool:
        own = {control for control, point in self._controls.items() if point == name}
        return bool(own) and own <= seen

    def _count_emissions(self, sent: dict[str, Emission]) -> dict[str, int]:
        clients = [point for point in self._points.values() if point.role is Role.CLIENT]
        return {name: len({n for c in clients for n in c.seen[name]}) for name in sent}

    def _unproved_sending(
        self, sent: dict[str, Emission], c0: dict[str, int], without_canaries: bool
    ) -> Iterator[str]:
        if not sent and not without_canaries:
            yield "no canary was sent"
        for name, emission in sent.items():
            if emission.sent < emission.asked:
                errors = "; ".join(emission.errors)
                yield f"{name}: sent {emission.sent} of at least {emission.asked}: {errors}"
            if c0[name] != emission.sent:
                yield f"{name}: sent {emission.sent}, but {c0[name]} seen on the client's link"

    def _delivery(self, name: str) -> Delivery:
        beyond = [p.delivery(name) for p in self._points.values() if p.role is Role.BEYOND]
        return max(beyond, key=lambda delivery: delivery.count, default=Delivery())

    def _label(self, capture: Capture) -> str:
        return "+".join(name for name, p in self._points.items() if p.capture is capture)

    def _save_captures(self) -> Iterator[str]:
        """All of them: why a frame was where it was shows on the other wires."""
        for number, capture in enumerate(self._captures.values()):
            label = "".join(c if c.isalnum() else "-" for c in self._label(capture))
            path = self.directory / f"{number}-{label[:60]}.pcap"
            write_pcap(path, capture.frames())
            yield str(path)


def _key(namespace: Path) -> _Key:
    status = namespace.stat()
    return status.st_dev, status.st_ino


def _send_somewhere(interface: str | None, frame: bytes) -> bool:
    names = [link.name for link in read_links().values()] if interface is ANY else [interface]
    return any(send_frame(name, frame) for name in names)
