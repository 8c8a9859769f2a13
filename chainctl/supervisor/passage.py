"""What passes through a tunnel besides our questions, from the kernel's counters. Pure.

A hop through which traffic comes back is not dead, whatever becomes of our questions; one into
which traffic goes and from which nothing comes is worth asking at once.
"""

from __future__ import annotations

from typing import NamedTuple

from chainctl.host.counters import Counts

_BUSY_FOR = 1.0
"""Seconds for which a tunnel counts as busy after others sent something into it."""


class Passage(NamedTuple):
    """Times are seconds since boot; 0 means never."""

    looked: float = 0.0
    counts: Counts | None = None
    outer: Counts | None = None
    """Of the link to the server, which all tunnels of the hop share."""
    last_received: float = 0.0
    """Something came out of the tunnel at this moment or later."""
    last_sent: float = 0.0
    """When it was last seen that others had sent something into it."""
    unreturned: int = 0
    """Packets others have sent into it since something came out."""
    unreturned_since: float = 0.0
    outer_received: int = 0
    """Packets that came from outside since something came out of the tunnel."""

    def after(
        self, counts: Counts | None, outer: Counts | None, *, asked: int, now: float
    ) -> Passage:
        """The counters were looked at once more; `asked` packets since then were our own."""
        before = self.counts
        if before is None or counts is None or counts.sent < before.sent:
            return Passage(now, counts, outer, self.last_received, self.last_sent)
        traffic = counts.sent - before.sent - asked
        sent = now if traffic > 0 else self.last_sent
        if counts.received > before.received:
            return Passage(now, counts, outer, self.looked, sent)
        arrived = 0
        if outer is not None and self.outer is not None:
            arrived = max(0, outer.received - self.outer.received)
        return Passage(
            now,
            counts,
            outer,
            self.last_received,
            sent,
            unreturned=self.unreturned + max(0, traffic),
            unreturned_since=self.unreturned_since or (now if traffic > 0 else 0.0),
            outer_received=self.outer_received + arrived,
        )

    def excused(self, seconds: float) -> Passage:
        """For so many of the last seconds nothing could come back."""
        since = self.unreturned_since
        return self._replace(unreturned_since=since and since + seconds)

    def is_busy(self, now: float) -> bool:
        """Others use the tunnel, so that the counters are worth a look now and then."""
        return bool(self.last_sent) and now - self.last_sent < _BUSY_FOR

    def unreturned_for(self, now: float) -> float:
        """Seconds for which others have sent and nothing came back; 0: something did."""
        return now - self.unreturned_since if self.unreturned_since else 0.0


NOTHING_SEEN = Passage()
