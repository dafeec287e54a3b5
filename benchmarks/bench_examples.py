"""What sidestep costs each example of a family: its time with a collector at work over its time with sidestep off.

    python benchmarks/bench_examples.py [FAMILY ...] [--pairs N] [--quick] [--json]

Each example is started as a process of its own, in turn with `SIDESTEP_MODE=off` and with a collector that runs, each
first in every other pair. The ratio is the median over pairs of time with over time without. Wall time is what a user
waits for, but on a machine that is not idle it is mostly the others'; CPU time is that of the training process with all
its threads, imports and the first compilation of kernels included. Bar: 1.02.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from support import Collector, Table

from sidestep.auto import environment as auto

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class Took(NamedTuple):
    wall: float
    cpu: float


def jepa(*, quick: bool) -> list[str]:
    """1200 steps of 50 ms, features of three levels at each tenth; quick: 40 steps."""
    return ["jepa/train.py", *(("--epochs", "2", "--crops", "320") if quick else ())]


def meanflow(*, quick: bool) -> list[str]:
    """300 steps of 200 ms, norms and times at each fifth, samples twice; quick: 60 steps."""
    return ["meanflow/train.py", *(("--epochs", "10") if quick else ())]


def backward(*, quick: bool) -> list[str]:
    """440 steps of 20 ms, updates, logits, kinds and times at each tenth; quick: 44 steps."""
    return ["backward/train.py", *(("--epochs", "2") if quick else ())]


def classification(*, quick: bool) -> list[str]:
    """A script that never mentions sidestep, captured: 500 steps of 45 ms; quick: 44 steps of digits."""
    sizes = ("--epochs", "2") if quick else ("--data", "shapes32", "--samples", "4000", "--epochs", "10")
    return ["classification/train.py", *sizes]


def slope(*, quick: bool) -> list[str]:
    """3840 steps of 5 ms, every loss, curvature and noise; quick: 240 steps."""
    return ["slope/train.py", *(("--samples", "4096") if quick else ())]


#: Scripts that are captured as they are.
UNCHANGED = {"classification/train.py"}
#: One function an example: its script, and its arguments.
FAMILIES: dict[str, Callable[..., list[str]]] = {
    "jepa": jepa,
    "meanflow": meanflow,
    "backward": backward,
    "classification": classification,
    "slope": slope,
}


def run(command: list[str], **more: str) -> Took:
    """Run a script to its end."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more}
    environ |= auto.variables(environ) if command[0] in UNCHANGED else {}
    begin = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, str(EXAMPLES / command[0]), *command[1:]], environ)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - begin
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{command[0]} failed")
    return Took(wall, usage.ru_utime + usage.ru_stime)


def measure(command: list[str], root: Path, collector: Collector, pairs: int) -> list[tuple[Took, Took]]:
    """(without, with) of each pair."""
    found: list[tuple[Took, Took]] = []
    for pair in range(pairs):
        on = {"SIDESTEP_DIR": str(root), "SIDESTEP_COLLECTOR": collector.address, "SIDESTEP_RUN_ID": f"run{pair}"}
        sides = [{"SIDESTEP_MODE": "off"}, on]
        took = [run(command, **side) for side in (sides if pair % 2 == 0 else sides[::-1])]
        found.append((took[0], took[1]) if pair % 2 == 0 else (took[1], took[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], help="default: all")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short trainings: to see that it works")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for family in args.families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder, Collector(Path(folder)) as collector:
            pairs = measure(FAMILIES[family](quick=args.quick), Path(folder), collector, args.pairs)
        results[family] = {
            "wall_seconds": statistics.median(with_it.wall for _, with_it in pairs),
            "wall_ratio": statistics.median(with_it.wall / without.wall for without, with_it in pairs),
            "cpu_ratio": statistics.median(with_it.cpu / without.cpu for without, with_it in pairs),
        }
    if args.json:
        print(json.dumps(results))
        return
    table = Table("examples")
    for family, values in results.items():
        table.add(f"{family}: whole example", values["wall_seconds"], "s", most=120)
        table.add(f"{family}: wall time over that without", values["wall_ratio"], "", most=1.02, digits=4)
        table.add(f"{family}: CPU time over that without", values["cpu_ratio"], "", digits=4)
    table.print()


if __name__ == "__main__":
    main()
