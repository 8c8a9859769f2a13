"""`python -m bench [--only NAME,...]`: measure, print a table, write bench/results.json
and the tables in docs/ that are made from it.

Exit status 1 when a row does not meet its target.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import bench.rows
from bench import tables
from bench.harness import ROWS, merge, report

_RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help="names of rows, separated by commas")
    names = [name for name in parser.parse_args().only.split(",") if name]
    for module in pkgutil.iter_modules(bench.rows.__path__):
        importlib.import_module(f"bench.rows.{module.name}")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")

    print(f"{'ROW':24}{'VALUE':>14}  {'BASELINE':>10}  {'RATIO':22}{'TARGET':>10}")
    reports = []
    for name in names or ROWS:
        reports.append(report(ROWS[name], ROWS[name].measure()))
        print(render(reports[-1]), flush=True)
        merge(_RESULTS, reports)
    tables.main()
    return 0 if all(entry["met"] for entry in reports) else 1


def render(entry: dict[str, Any]) -> str:
    """One line of the table."""
    value = f"{entry['value']:.4g} {entry['unit']}"
    baseline = "" if entry["baseline"] is None else f"{entry['baseline']:.4g}"
    ratio = entry["ratio"]
    between = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio else ""
    verdict = "met" if entry["met"] else "NOT MET"
    measured = f"{entry['name']:24}{value:>14}  {baseline:>10}  {between:22}"
    return f"{measured}{entry['target']:>10}  {verdict}"


if __name__ == "__main__":
    sys.exit(main())
