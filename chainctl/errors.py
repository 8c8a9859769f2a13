"""One error tree, named after what the reader of the message can do about it.

Every error that reaches a person has a stable `code`, a message that says what was
expected, and a `hint`: the next thing to do. The command line prints them
(`chainctl.cli.output`) and exits with `exit_status`.

Code ranges: C1xx chain file, C2xx profiles, C3xx host and kernel, C4xx hops and
tunnels, C5xx supervisor, C6xx lab, C7xx images. Codes are never used again for
something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class ChainctlError(Exception):
    """Anything a person is told. `transient` alone decides about retries, never the text."""

    exit_status: ClassVar[int] = 3
    transient: ClassVar[bool] = False

    def __init__(self, code: str, message: str, *, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.where = where
        """What it is about, for example `hop middle, chain.yaml:7`."""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"[{self.code}]{place} {self.message}"


@dataclass(frozen=True, order=True)
class Complaint:
    """One thing wrong in a file a person wrote. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    code: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"[{self.code}] {self.file}:{self.line}:{self.column} {self.message}"


class MendFile(ChainctlError):
    """The chain file, a profile, or the command line is wrong: all complaints at once."""

    exit_status = 2

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        where: str = "",
        complaints: Sequence[Complaint] = (),
    ) -> None:
        super().__init__(code, message, hint=hint, where=where)
        self.complaints = tuple(complaints)

    @classmethod
    def of(cls, complaints: Sequence[Complaint]) -> MendFile:
        first = sorted(complaints)[0]
        return cls(first.code, first.message, hint=first.hint, complaints=sorted(complaints))


class MendHost(ChainctlError):
    """This machine lacks or refuses something (kernel feature, tool, right, conflict)."""

    exit_status = 3


class ChangeServer(ChainctlError):
    """A server or a tunnel to it does not work; another one may."""

    exit_status = 1
    transient = True


class UnlockSecret(ChainctlError):
    """A key, a password or an account is missing, wrong or not accepted."""

    exit_status = 4


class LookAgain(ChainctlError):
    """It may work the next time: something was busy or did not answer yet."""

    exit_status = 1
    transient = True


class RefusedByPolicy(ChainctlError):
    """Understood, and not done because a rule of this project or of the user forbids it."""

    exit_status = 1


class StepFailed(ChainctlError):
    """A plan stopped at a step. `still_blocked` says whether anything can leave the machine."""

    exit_status = 5

    def __init__(self, step: str, cause: ChainctlError, *, still_blocked: bool) -> None:
        super().__init__(cause.code, f"{step}: {cause.message}", hint=cause.hint, where=cause.where)
        self.step = step
        self.cause = cause
        self.still_blocked = still_blocked
        if not still_blocked:
            self.exit_status = 6  # type: ignore[misc]
