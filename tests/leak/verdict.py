"""What the oracle says in the end, as one record that is also written to a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Outcome(StrEnum):
    """PASS is a proof; the other three are failures, in the order of what they say."""

    PASS = "pass"
    LEAK = "leak"
    """Something was on a wire that must not be there."""
    INVALID = "invalid"
    """Not everything was seen, so nothing is known."""
    ERROR = "error"
    """All was seen, but a control or a proof that something was sent is missing."""


@dataclass(frozen=True)
class Leak:
    """`when` in seconds since 1970, `what` the frame, `why` the rule it broke."""

    point: str
    link: str
    when: float
    what: str
    why: str


@dataclass(frozen=True)
class Delivery:
    """What arrived of one emission, at the points beyond the chain."""

    count: int = 0
    """Different canaries; a repeated one counts once."""
    first: float = 0.0
    last: float = 0.0
    longest_gap: float = 0.0
    """Seconds between two that arrived one after the other."""
    sources: tuple[str, ...] = ()
    """From where they were sent, as the far end saw it."""


@dataclass(frozen=True)
class Verdict:
    test: str
    outcome: Outcome
    why: tuple[str, ...]
    """Everything that speaks against PASS except single leaks, most important first."""
    sent: Mapping[str, int]
    c0: Mapping[str, int]
    """Seen on the client's own link: equal to `sent`, or the sending is not proved."""
    leaks: tuple[Leak, ...]
    """The first few of each kind for each point; `leaked` and `illegal` count all."""
    leaked: Mapping[str, int]
    """Canaries and hidden things by point."""
    illegal: Mapping[str, int]
    """Frames outside the allow-list by point."""
    frames: Mapping[str, int]
    """Frames judged by point."""
    drops: int
    gaps: tuple[str, ...]
    counters_equal: bool
    control: Mapping[str, bool]
    delivered: Mapping[str, Delivery]
    pcaps: tuple[str, ...]

    def assert_clean(self) -> None:
        """Raise AssertionError with everything a person needs, unless this is a PASS."""
        if self.outcome is not Outcome.PASS:
            raise AssertionError(self.text())

    def text(self) -> str:
        lines = [f"leak oracle: {self.outcome.value.upper()} {self.test}".rstrip(), *self.why]
        for leak in self.leaks[:40]:
            lines.append(f"{leak.point} ({leak.link}) {leak.when:.6f} {leak.what}: {leak.why}")
        lines += [f"capture: {path}" for path in self.pcaps]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Evidence:
    """What the captures of a run amount to, before it is weighed."""

    lost: Sequence[str]
    """Each a way in which frames may have escaped the captures."""
    unproved: Sequence[str]
    """Each a control or a proof that is missing."""
    leaked: Mapping[str, int]
    illegal: Mapping[str, int]


def weigh(evidence: Evidence) -> tuple[Outcome, tuple[str, ...]]:
    """A leak that was seen is a leak, whatever else went wrong; then doubt, then lack of proof."""
    leaks = [f"{point}: {n} betrayed" for point, n in evidence.leaked.items() if n]
    leaks += [f"{point}: {n} outside the allow-list" for point, n in evidence.illegal.items() if n]
    why = (*leaks, *evidence.lost, *evidence.unproved)
    if leaks:
        return Outcome.LEAK, why
    if evidence.lost:
        return Outcome.INVALID, why
    return (Outcome.ERROR if evidence.unproved else Outcome.PASS), why
