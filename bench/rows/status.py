"""What it costs to ask how a chain is, in CPU time."""

from __future__ import annotations

from bench.harness import Result, at_most, compare, interleave, row
from bench.labs import CHAINCTL, chainctl, lab
from bench.rows.command_line import cpu_ms

_HELP = [CHAINCTL, "--help"]


@row("cli_status", unit="ms", target=at_most(250))
def cli_status() -> Result:
    """`chainctl status` of a chain of three hops, beside `chainctl --help`."""
    with lab("status", 3) as one:
        chainctl(one, "up", str(one.chain_file))
        variables = [f"{name}={value}" for name, value in one.environ.items()]
        # Both exec what follows, so that the time is the command's.
        entered = ["env", *variables, "nsenter", f"--net=/run/netns/{one.namespace('host')}"]
        ours = [*entered, CHAINCTL, "status"]
        cpu_ms(ours)
        return compare(interleave(lambda: cpu_ms(ours), lambda: cpu_ms(_HELP), count=20))
