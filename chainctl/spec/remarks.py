"""What becomes of one line of a profile."""

from __future__ import annotations

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
