"""What sidestep costs each example of a family: with a collector at work, over the same training without sidestep.

    python benchmarks/bench_examples.py [FAMILY ...] [--pairs N] [--quick] [--json] [--write]

Both trainings of a pair run in turn, a fifth of a second each, the other stopped meanwhile: what else the machine does
falls on both. One of them finds in sidestep's place a module whose calls do nothing; what an example computes for
sidestep alone it leaves out there. Ratios are medians over pairs of time with over time without; CPU time is that of
the training process with all of its threads. Bar: 1.02 for the whole example. Below it stand its parts: the start (up
to the twentieth step: imports, the run, what is made once), the steps, the end; and of the steps' CPU time the shares
that were counted directly, which noise does not reach: within sidestep's calls on the training thread, and in the
thread that ships. `--write` adds them to results/examples.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from support import Collector, Table, machine

from sidestep.auto import environment as auto

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
RESULTS = HERE / "results" / "examples.md"
TITLE = """# What sidestep costs the examples

Written by `python benchmarks/bench_examples.py --write`, whose first lines say how it is measured."""
SECTION = "\n\n## "
#: Seconds of a turn.
TURN = 0.2


class Took(NamedTuple):
    """Of one training: seconds of its turns, and what `staged` wrote."""

    wall: float
    marks: dict[str, Any]

    def cpu(self, begin: str = "began", end: str = "ended") -> float:
        """CPU seconds of the process between two marks."""
        return self.marks[end][1] - self.marks[begin][1]


def jepa(*, quick: bool) -> list[str]:
    """1200 steps of 50 ms, features of three levels at each 25th; quick: 40 steps."""
    return ["jepa/train.py", *(("--epochs", "2", "--crops", "320") if quick else ())]


def meanflow(*, quick: bool) -> list[str]:
    """300 steps of 200 ms, norms and times at each fifth, samples twice; quick: 60 steps."""
    return ["meanflow/train.py", *(("--epochs", "10") if quick else ())]


def backward(*, quick: bool) -> list[str]:
    """440 steps of 25 ms, updates, logits, kinds and times at each 22nd; quick: 44 steps."""
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


def start(command: list[str], arm: str, out: Path, **more: str) -> subprocess.Popen[bytes]:
    """Start a training, stopped."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more}
    environ |= auto.variables(environ) if command[0] in UNCHANGED and arm == "with" else {}
    script = [str(HERE / "staged.py"), str(out), arm, str(EXAMPLES / command[0]), *command[1:]]
    nothing = subprocess.DEVNULL
    child = subprocess.Popen([sys.executable, *script], env=environ, stdout=nothing, stderr=nothing)
    child.send_signal(signal.SIGSTOP)
    return child


def in_turns(children: dict[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """Let trainings run to their ends, one at a time; seconds of the turns of each."""
    spent = dict.fromkeys(children, 0.0)
    while any(child.poll() is None for child in children.values()):
        for arm, child in children.items():
            if child.poll() is not None:
                continue
            began = time.perf_counter()
            child.send_signal(signal.SIGCONT)
            try:
                child.wait(TURN)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGSTOP)
            spent[arm] += time.perf_counter() - began
    failed = [arm for arm, child in children.items() if child.returncode]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    return spent


def measure(command: list[str], root: Path, collector: Collector, pairs: int) -> list[tuple[Took, Took]]:
    """(without, with) of each pair."""
    found: list[tuple[Took, Took]] = []
    for pair in range(pairs):
        on = {"SIDESTEP_DIR": str(root), "SIDESTEP_COLLECTOR": collector.address, "SIDESTEP_RUN_ID": f"run{pair}"}
        arms = ("plain", "with")[:: 1 if pair % 2 == 0 else -1]
        children = {arm: start(command, arm, root / arm, **(on if arm == "with" else {})) for arm in arms}
        try:
            wall = in_turns(children)
        finally:
            for child in children.values():
                child.kill()
        plain, watched = (Took(wall[arm], json.loads((root / arm).read_text("utf-8"))) for arm in ("plain", "with"))
        found.append((plain, watched))
    return found


def figures(pairs: list[tuple[Took, Took]]) -> dict[str, float]:
    """What is told of a family."""

    def median(of: Callable[[Took, Took], float]) -> float:
        return statistics.median(of(plain, watched) for plain, watched in pairs)

    return {
        "wall_seconds": median(lambda _, watched: watched.wall),
        "steps": median(lambda _, watched: watched.marks["steps"]),
        "wall_ratio": median(lambda plain, watched: watched.wall / plain.wall),
        "cpu_ratio": median(lambda plain, watched: watched.cpu() / plain.cpu()),
        "steps_ratio": median(lambda plain, watched: watched.cpu("warm", "last") / plain.cpu("warm", "last")),
        "start_seconds": median(lambda plain, watched: watched.cpu("began", "warm") - plain.cpu("began", "warm")),
        "end_seconds": median(lambda plain, watched: watched.cpu("last") - plain.cpu("last")),
        "inside_share": median(lambda _, watched: watched.marks["inside"] / watched.cpu("warm", "last")),
        "shipping_share": median(lambda _, watched: watched.marks["shipping"] / watched.cpu("warm", "last")),
    }


def table_of(family: str, found: dict[str, float], pairs: int) -> Table:
    """The figures of a family."""
    table = Table(f"{family}, {found['steps']:.0f} steps, {pairs} pairs")
    table.add("whole example", found["wall_seconds"], "s", most=120)
    table.add("CPU time over that without", found["cpu_ratio"], "", most=1.02, digits=4)
    table.add("wall time over that without", found["wall_ratio"], "", digits=4)
    table.add("  steps: CPU time over that without", found["steps_ratio"], "", digits=4)
    table.add("    within sidestep on the training thread", 100 * found["inside_share"], "%")
    table.add("    in the thread that ships", 100 * found["shipping_share"], "%")
    table.add("  start: CPU time more", found["start_seconds"], "s")
    table.add("  end: CPU time more", found["end_seconds"], "s")
    return table


def write(family: str, table: Table) -> None:
    """Put a family's table into the page of results, in the place of the one that stands there."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else TITLE
    _, *sections = text.split(SECTION)
    known = {section.partition("\n")[0]: section.rstrip() for section in sections}
    known[family] = f"{family}\n\n{time.strftime('%Y-%m-%d')}, {machine()}.\n\n{table.markdown()}"
    parts = [TITLE, *(known[name] for name in FAMILIES if name in known)]
    RESULTS.write_text(SECTION.join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], help="default: all")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short trainings: to see that it works")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="into results/examples.md")
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for family in args.families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder, Collector(Path(folder)) as collector:
            pairs = measure(FAMILIES[family](quick=args.quick), Path(folder), collector, args.pairs)
        results[family] = figures(pairs)
        table = table_of(family, results[family], args.pairs)
        if args.write:
            write(family, table)
        if not args.json:
            table.print()
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
