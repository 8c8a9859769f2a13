"""What becomes of one line of a profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from chainctl.spec.yaml_text import Place


class Verdict(Enum):
    USED = "used"
    DROPPED = "dropped"
    REFUSED = "refused"


@dataclass(frozen=True)
class Remark:
    place: Place
    word: str
    """The directive or key; "" when it is about more, or could be a secret."""
    verdict: Verdict
    code: str
    """A notice's when dropped, a complaint's when refused; "" when used."""
    message: str

    @property
    def kind(self) -> str:
        """What sort of refusal it is, the same for both kinds of profiles; "" for others."""
        return kind_of(self.code) if self.verdict is Verdict.REFUSED else ""


MOST_REFUSALS = 50
"""Of one file; more of them say no more than that it is something else."""


def capped(remarks: Iterable[Remark]) -> tuple[Remark, ...]:
    """By place; those behind the fiftieth refusal become one."""
    ordered = sorted(remarks, key=lambda remark: (remark.place, remark.code))
    refused = [remark for remark in ordered if remark.verdict is Verdict.REFUSED]
    if len(refused) <= MOST_REFUSALS:
        return tuple(ordered)
    first = refused[MOST_REFUSALS]
    words = f"and {len(refused) - MOST_REFUSALS} more places that cannot be used"
    kept = ordered[: ordered.index(first)]
    return (*kept, Remark(first.place, "", Verdict.REFUSED, first.code, words))


_KINDS = {
    "E_CFG_EXEC": "C203 C221",
    "E_CFG_PATH": "C222",
    "E_CFG_TRANSPORT": "C223",
    "E_CFG_CONTROL": "C224",
    "E_CFG_UNKNOWN": "C202 C212 C215 C225",
    "E_CFG_BLOCK": "C226",
    "E_CFG_MISSING": "C207 C228",
    "E_CFG_KIND": "C205 C206 C214 C229",
    "E_CFG_TWICE": "C211",
    "E_CFG_LOGIN": "C230",
    "E_CFG_FILE": "C201",
}


def kind_of(code: str) -> str:
    """Of a complaint's code; `E_CFG_VALUE` for those about a value."""
    return next((kind for kind, codes in _KINDS.items() if code in codes), "E_CFG_VALUE")
