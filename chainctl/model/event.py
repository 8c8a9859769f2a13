"""What happened, in past tense, with a stable code. The journal numbers events without a gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """`kind` is the machine's word (`gate_opened`), `text` a sentence for a person."""

    kind: str
    chain: str
    text: str
    hop: str = ""
    code: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorded:
    """An event as the journal keeps it. `at`: seconds since 1970; `boot`: since boot."""

    seq: int
    at: float
    boot: float
    event: Event
