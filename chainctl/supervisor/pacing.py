"""How often something is done that costs more the more of them there are. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple


class Pace(NamedTuple):
    """Times are seconds."""

    shortest: float
    """Between two turns while there are few."""
    a_second: float
    """So many are done in a second at most, so that the more there are the longer it takes."""
    longest: float = math.inf
    """Between two turns, however many there are."""

    def of(self, many: int) -> float:
        """Between two turns with so many."""
        return min(self.longest, max(self.shortest, many / self.a_second))
