"""Seeded bugs that more than one kind of plan is tried with."""

from __future__ import annotations

from collections.abc import Iterable

from chainctl.model.parts import NftTable
from chainctl.supervisor.plan import Change, Make, Remove, Step


def table_replaced_in_two_steps(steps: list[Step]) -> Iterable[Step]:
    for step in steps:
        if isinstance(step, Change) and isinstance(step.old, NftTable):
            yield from (Remove(step.old), Make(step.new))
        else:
            yield step
