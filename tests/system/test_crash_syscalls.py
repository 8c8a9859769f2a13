"""Killed before system calls that change something: the supervisor, or a program it runs.

strace(1) first shows which calls change something lasting (`tests.system.syscalls`), each told
by its name and by which of its thread it is. A sweep then kills whoever is about to make that
call for this time, before the kernel sees it: mostly the supervisor, inside `runc` or the
helper that makes namespaces that one, which the supervisor must survive. Every kind of call is
killed at, a random choice of its occurrences; CHAINCTL_SWEEP=all kills at every one.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leak.canary import Expect
from tests.leak.oracle import Oracle
from tests.system.crash_bench import DOWN, FLOOD, Bench, bench_of, watch
from tests.system.forks import Facts
from tests.system.syscalls import Call, command, effect, parse, written_to

pytestmark = pytest.mark.root

EVERYTHING = os.environ.get("CHAINCTL_SWEEP") == "all"
SEED = int(os.environ["CHAINCTL_SEED"])
KILLS = {"up": 40, "down": 12}
"""About how many; of each kind of call at least one."""

_OPEN = r"\x6f\x70\x65\x6e\x00"
"""The name of the gate's set, as strace prints bytes."""
_CLIENT = re.compile(r"\.hop\d+\.[ab]\b")
_MARK = re.compile(r'"\d+:(before|after) ')


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with bench_of(hops=1) as bench:
        yield bench


def traced(bench: Bench, request: Facts, folder: Path, log: Path | None = None) -> list[Call]:
    output = folder / "trace"
    bench.forks.run(request, log=log, strace=command(output)).checked()
    return list(parse(output.read_text().splitlines()))


def test_nothing_changes_between_steps(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "points"
    for request in (bench.up, DOWN):
        inside = 0
        calls = traced(bench, request, tmp_path, log)
        probes = {call.pid for call in calls if call.name == "unshare" and "NEWNET" in call.text}
        outside: list[Call] = []
        in_step = refreshed = False
        for call in calls:
            if written_to(call) == str(log):
                mark = _MARK.search(call.text)
                in_step = mark is not None and mark[1] == "before"
            elif prolongs_gate(call):
                refreshed = True
            elif refreshed and effect(call) == "bpf":
                refreshed = False  # The gate's other copy.
            elif effect(call) and not in_step and not is_harmless(call, bench, log, probes):
                outside.append(call)
            else:
                inside += bool(effect(call) and in_step)
        assert not outside, "\n".join(map(str, outside))
        assert inside > 50


def prolongs_gate(call: Call) -> bool:
    """An open gate stays open while a request is served: nothing but its set is written to."""
    elements, batch = {0xA0C, 0xA0E}, {0x10, 0x11}
    kinds = {int(kind, 16) for kind in re.findall(r"nlmsg_type=(0x[0-9a-f]+)", call.text)}
    return bool(kinds & elements) and kinds <= elements | batch and _OPEN in call.text


def is_harmless(call: Call, bench: Bench, log: Path, probes: set[int]) -> bool:
    """What is no part of a chain: memory of what happened, and a look at what the kernel can."""
    own = re.compile(rf'"{re.escape(str(bench.lab.home / "run"))}(/\w+){{0,2}}"')
    return (
        str(bench.lab.home / "state") in call.text
        or str(log) in call.text
        or (call.name in ("mkdir", "rmdir", "chmod") and own.match(call.text) is not None)
        # A client is begun in its step and starts beside those that follow; what waits for it is a
        # step as well.
        or "/clients/" in call.text
        or _CLIENT.search(call.text) is not None
        or "RTM_NEWNSID" in call.text  # A number for a namespace, which goes with it.
        or call.pid in probes  # In a namespace of its own, gone with the thread.
        or (effect(call) == "signal" and "SIGKILL" in call.text)  # The idle helper.
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("what", ["up", "down"])
def test_before_every_change(bench: Bench, tmp_path: Path, what: str, seed: int) -> None:
    request = bench.up if what == "up" else DOWN
    if what == "down":
        bench.opens("at first")
    chance = random.Random(seed)
    targets = choose(traced(bench, request, tmp_path), KILLS[what], chance)
    if what == "up":
        bench.goes_down("at first")
    hits = 0
    with Oracle(tmp_path / "oracle", test=f"{what} killed before changes") as oracle:
        watch(bench.lab, oracle)
        oracle.start(FLOOD, expect=Expect.EITHER)
        for number, (name, nth) in enumerate(targets):
            when = f"after {what} was killed before {name} number {nth}"
            if what == "down":
                bench.opens(f"before that {when}")
            ran = bench.forks.run(request, strace=killer(name, nth))
            assert not ran.died, f"{when}: {ran.died}"
            hits += ran.killed or ran.error is not None
            if number % 2:
                bench.opens(when)
            bench.goes_down(when)
        oracle.judge().assert_clean()
    # A thread may be quicker or slower than the first time; a program that was killed may have
    # been asked again.
    assert hits > len(targets) / 2


def choose(calls: list[Call], most: int, chance: random.Random) -> list[tuple[str, int]]:
    """(name, which of its thread) of calls that change something, of every kind some."""
    passed: Counter[tuple[int, str]] = Counter()
    changing: dict[str, set[int]] = defaultdict(set)
    for call in calls:
        passed[call.pid, call.name] += 1
        if effect(call):
            changing[call.name].add(passed[call.pid, call.name])
    total = sum(map(len, changing.values()))
    share = 1.0 if EVERYTHING else min(1.0, most / total)
    return [
        (name, nth)
        for name, numbers in sorted(changing.items())
        for nth in sorted(chance.sample(sorted(numbers), math.ceil(share * len(numbers))))
    ]


def killer(name: str, nth: int) -> list[str]:
    inject = f"inject={name}:signal=SIGKILL:when={nth}"
    return ["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject]
