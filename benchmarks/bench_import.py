"""What `import sidestep` costs a script, over a bare interpreter.

    python benchmarks/bench_import.py [--quick]

Fresh interpreters, one with the import and one without in turn; the figure is the difference of the medians.
Modules that a training process must not pay for are named where one was loaded.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from support import Table

HEAVY = ("torch", "numpy", "duckdb", "tensorboard", "msgspec", "pydantic", "structlog", "asyncio", "psutil")
SLOWEST = 5


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def loaded() -> list[str]:
    code = f"import sys, sidestep; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def slowest() -> list[str]:
    """The modules that take longest themselves, those of a bare start left out."""
    times = []
    for code in ("import sidestep", "pass"):
        said = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code], check=True, capture_output=True, text=True
        )
        rows = [line.removeprefix("import time:").split("|") for line in said.stderr.splitlines()[1:]]
        times.append({name.strip(): int(own) for own, _, name in rows})
    added = {name: own for name, own in times[0].items() if name not in times[1]}
    ordered = sorted(added, key=lambda name: added[name], reverse=True)
    return [f"{name} {added[name] / 1000:.1f} ms" for name in ordered[:SLOWEST]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats: shows that it works")
    repeats = 3 if parser.parse_args().quick else 15
    seconds("import sidestep")  # its bytecode is on disk, as in every start but the first
    bare, with_import = [], []
    for _ in range(repeats):
        bare.append(seconds("pass"))
        with_import.append(seconds("import sidestep"))
    start, total = statistics.median(bare) * 1e3, statistics.median(with_import) * 1e3
    heavy = loaded()
    table = Table(f"import sidestep, median of {repeats}")
    table.add("bare interpreter", start, "ms")
    table.add("with import sidestep", total, "ms")
    table.add("import sidestep alone", total - start, "ms", most=60)
    table.add("heavy modules loaded", len(heavy), "", most=0)
    table.say("which", ", ".join(heavy) or "none")
    for place, name in enumerate(slowest(), 1):
        table.say(f"slowest module {place}", name)
    table.print()


if __name__ == "__main__":
    main()
