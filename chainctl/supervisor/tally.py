"""How many questions were asked and answered within the last minutes. Pure."""

from __future__ import annotations

from collections import deque

MINUTES = 5
"""Over so many loss is said, the current one included."""


class Tally:
    """Times are seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._minutes: deque[list[int]] = deque(maxlen=MINUTES)

    def asked(self, now: float) -> None:
        self._minute(now)[1] += 1

    def heard(self, now: float) -> None:
        self._minute(now)[2] += 1

    def excuse(self, questions: int) -> None:
        """The newest of them were not lost on the way to this hop. What was heard stays."""
        for minute in reversed(self._minutes):
            excused = min(questions, minute[1] - minute[2])
            if excused > 0:
                minute[1] -= excused
                questions -= excused

    def over(self, now: float) -> tuple[int, int]:
        """(asked, heard)."""
        oldest = int(now // 60) - MINUTES + 1
        recent = [each for each in self._minutes if each[0] >= oldest]
        return sum(each[1] for each in recent), sum(each[2] for each in recent)

    def _minute(self, now: float) -> list[int]:
        minute = int(now // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append([minute, 0, 0])
        return self._minutes[-1]
