"""`make bench`: every side-by-side measurement, one tab-separated row each.

Columns: name, ours, peer, ratio. A ratio above 1 means that ours is better. `--short` runs the
small forms. Names after the options select benchmarks, such as ``transfer decode``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    short = "--short" in arguments
    wanted = [name for name in arguments if not name.startswith("-")]
    modules = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    print("name\tours\tpeer\tratio")
    for module_name in modules:
        if wanted and module_name.removeprefix("bench_") not in wanted:
            continue
        rows = importlib.import_module(f"tests.benchmarks.{module_name}").rows
        options = {"short": short} if "short" in inspect.signature(rows).parameters else {}
        for name, ours, peer, ratio in rows(**options):
            print(f"{name}\t{ours:.4g}\t{peer:.4g}\t{ratio:.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
