"""A string that must not be printed: keys, passwords, tokens."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final, NoReturn, final


@final
class Secret:
    """Keeps its text out of `repr`, logs, copies and pickles; only `reveal` gives it away.

    Two secrets compare in constant time. It is not erased from memory: Python cannot.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text: Final = text

    def reveal(self) -> str:
        """The text itself, for the one place that hands it to a VPN client."""
        return self._text

    def digest(self) -> str:
        """SHA-256 in hex: tells two random keys apart. Says too much about a short password."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self.digest())

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a secret is neither copied nor pickled")
