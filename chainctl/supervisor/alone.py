"""What can be said of chains, and done, while no supervisor answers.

The command line calls it when none runs, or when the one that runs is stopped or hung. The
journal's file and the kernel's gate are there in any case; nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chainctl.errors import ChainctlError, RefusedByPolicy
from chainctl.model.event import Event
from chainctl.settings import Settings
from chainctl.store.journal import Journal
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.status import describe


def status(settings: Settings, chain: str, why: ChainctlError) -> list[dict[str, Any]]:
    """What is wanted and whether the gate has shut yet, of one chain or of all ("").

    `why` says that nobody answers. Then nobody refreshes the gate either, so it shuts by itself.
    """
    if not settings.journal_path.exists():
        return []
    with _opened(settings) as (journal, machine):
        wanted = [entry for entry in journal.chains() if entry.up and chain in ("", entry.name)]
        found = [describe(entry, None, machine) for entry in wanted]
    for facts in found:
        note = f"[{why.code}] {why.message}"
        if facts["posture"] == "open":
            facts["notes"] = [f"{note}: the gate shuts within 4 seconds"]
        elif facts["why_closed"]["code"] != "N502":  # Shut by hand stays so in any case.
            hint = f"chainctl up {facts['file']}" if why.code == "C502" else why.hint
            text = f"{why.message}, so the gate shut by itself"
            facts["why_closed"] = {"code": why.code, "text": text, "hint": hint}
        elif why.code != "C502":
            facts["notes"] = [f"{note}; {why.hint}"]
    return found


def close(settings: Settings, chain: str) -> None:
    """Shut the gate now, in the kernel, and for whichever supervisor comes back.

    The kernel first: the journal may be locked by who does not answer. Raises RefusedByPolicy
    C501 when there is no such chain, MendHost C512 when it was shut but not written down.
    """
    with _opened(settings) as (journal, machine):
        wanted = journal.chain(chain)
        if wanted is None or not wanted.up:
            raise RefusedByPolicy("C501", f"the chain {chain} is not up", hint="chainctl up")
        machine.close_gate(chain, wanted.number)
        journal.want(chain, closed=True)
        # Who was stopped in the middle of refreshing the gate reads the journal after that.
        machine.close_gate(chain, wanted.number)
        journal.append(Event("gate_closed", chain, "shut by hand", code="N502"))


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[Journal, Machine]]:
    journal, machine = Journal(settings.journal_path), Machine(settings)
    try:
        yield journal, machine
    finally:
        machine.close()
        journal.close()
