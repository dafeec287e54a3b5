"""What watching costs a training: step time, memory, time by the number of tensors, and other tools beside it.

    python benchmarks/bench_overhead.py [--write] [--device cpu|cuda] [--quick] [--threads N] [--only PART ...]

Two equal networks train in turn in one process, one of them watched (`overhead.turns` says how times are taken). The
collector runs beside them. With `--write` the tables go into benchmarks/results/overhead.md (on a GPU overhead-cuda.md)
as well, and the plot beside it; that takes less than ten minutes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from overhead import memory, peers, ratios, tensors
from support import Collector, Table, folder, machine

RESULTS = Path(__file__).parent / "results"
PARTS = ("tensors", "steps", "bits", "peers", "memory")
NOTE = """
Two networks train in turn, one of them watched: figures are medians of differences within pairs, so that what else the
machine does falls on both; where its load is more than 1, only times of the thread's own CPU clock say much. "By sums"
is the mean of the same differences: it also has what is rarer than one step in 50, and all of the noise. A ratio of
step times below 1 is noise, and says how large that is. How it is measured: benchmarks/overhead/turns.py. Host and
device are one on a CPU: all that probes compute is in these figures, where on a GPU the host would only launch it.
"""
UNMEASURED = "GPU rows are unmeasured: `python benchmarks/bench_overhead.py --device cuda --write` measures them."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    for name in ("memory", "place"):  # one process a model, or a tool: what it was started for
        parser.add_argument(f"--{name}", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.stdout.reconfigure(line_buffering=True)  # it takes minutes: whoever reads a file sees each table as it is done
    if arguments.memory:
        memory.measure(*arguments.memory, arguments.device)
    elif arguments.peer:
        address, root = arguments.place
        peers.measure(arguments.peer, arguments.device, arguments.rounds, (address, Path(root)))
    else:
        report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Measure what was asked for, print it, and write it."""
    device, quick = arguments.device, arguments.quick
    RESULTS.mkdir(exist_ok=True)
    plot = RESULTS / f"overhead{'-cuda' if device == 'cuda' else ''}.svg" if arguments.write else None
    begin = time.monotonic()
    done: list[Table] = []
    with folder() as root, Collector(root) as collector:
        place = (collector.address, root)
        parts: dict[str, Callable[[], Iterable[Table]]] = {
            "tensors": lambda: [tensors.tensors(device, place, plot, quick=quick)],
            "steps": lambda: ratios.step_times(device, 3 if quick else 12, place),
            "bits": lambda: [ratios.sameness(device, place)],
            "peers": lambda: [peers.peers(device, 3 if quick else 10, place)],
            "memory": lambda: [memory.memory(device)],
        }
        for part in arguments.only:
            for table in parts[part]():
                table.print()
                done.append(table)
            if plot is not None:
                write(plot, done, time.monotonic() - begin)
    print(f"measured in {time.monotonic() - begin:.0f} s")


def write(plot: Path, tables: Iterable[Table], seconds: float) -> None:
    """The results so far as a page."""
    is_cpu = "cuda" not in plot.name
    today = dt.datetime.now(dt.UTC).date().isoformat()
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    lines = [
        "# What watching costs a training",
        f"{today}, {machine()}, {threads}"
        + ("" if is_cpu else f", {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
        + ". Written by `python benchmarks/bench_overhead.py --write"
        + ("`" if is_cpu else " --device cuda`")
        + f" in {seconds:.0f} s.",
        NOTE.strip(),
        *([UNMEASURED] if is_cpu else []),
        *(table.markdown() for table in tables),
    ]
    if plot.exists():
        lines.append(f"![Time added to a step by the number of parameter tensors]({plot.name})")
    plot.with_suffix(".md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
