"""Writes docs/metrics.md and docs/store.md from the declarations that the code itself reads.

    python docs/generate.py            writes them
    python docs/generate.py --check    writes nothing; exits with 1 where one is out of date

What these pages say is changed in `catalog/`, `profiles/` and `tables.py`, never here.
"""  # noqa: INP001

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from families import sections

from sidestep_schemas.catalog import METRICS, Metric
from sidestep_schemas.tables import DERIVED_VIEWS, STORE_VERSION, TABLES, Table

HERE = Path(__file__).resolve().parent
NOTICE = "<!-- Written by docs/generate.py from {source}: change it there. -->"
REDUCTIONS = {
    "mean": "mean",
    "sum": "sum",
    "max": "maximum",
    "l2": "root of the sum of squares",
    "rms": "root mean square",
}
PLACES = {
    "catalog": "In the catalogue file, replaced as a whole at each commit.",
    "parts": "A view over immutable Parquet files.",
}


def metrics_page() -> str:
    """docs/metrics.md: every metric that sidestep gives a meaning to."""
    lines = [
        NOTICE.format(source="sidestep_schemas/catalog and profiles"),
        "# Metrics",
        "",
        "Every metric that sidestep itself produces or gives a meaning to. A name that is not here may be logged all",
        "the same: it is stored under its tag, without a unit. `<block>` and the like stand for one part of a tag.",
        "*Taken* is how often by default; *over ranks* is how the values of several processes become one, *sharded*",
        "where the model's parameters are sharded over them (FSDP2, tensor parallelism) and each tells of its part.",
        "",
        *_table(
            ("metric", "name", "unit", "taken", "better", "over ranks", "meaning"),
            map(_metric_row, METRICS),
        ),
        *sections(_table),
    ]
    return "\n".join(lines) + "\n"


def store_page() -> str:
    """docs/store.md: every table and view of the store, with its columns."""
    lines = [
        NOTICE.format(source="sidestep_schemas/tables.py"),
        "# The store",
        "",
        f"Version {STORE_VERSION} of the layout. All of it is read with plain read-only connections, in any number,",
        "while the collector writes:",
        "",
        "```python",
        "import duckdb",
        "",
        'store = duckdb.connect("sidestep-data/store/sidestep.duckdb", read_only=True)',
        "store.sql(\"SELECT step, value FROM points_current WHERE metric = 'train/loss_total' ORDER BY step\")",
        "```",
        "",
        "A connection sees the commit it was opened on; open another to see newer ones.",
        "",
    ]
    for table in TABLES:
        lines += _section(table)
    lines += ["## Derived views", "", *_table(("view", "meaning"), ((f"`{k}`", v) for k, v in DERIVED_VIEWS.items()))]
    return "\n".join(lines) + "\n"


PAGES = {"metrics.md": metrics_page, "store.md": store_page}


def _metric_row(metric: Metric) -> tuple[str, ...]:
    over_ranks = REDUCTIONS[metric.reduction]
    if metric.sharded:
        rule, _, weight = metric.sharded.partition(":")
        over_ranks += f"; sharded: {REDUCTIONS[rule]}" + (f", weighted by `{weight}`" if weight else "")
    return (f"`{metric.tag}`", metric.name, metric.unit, metric.tier, metric.better or "", over_ranks, metric.meaning)


def _section(table: Table) -> list[str]:
    rows = ((f"`{column.name}`", f"`{column.type}`", column.unit, column.meaning) for column in table.columns)
    order = ", ".join(f"`{name}`" for name in table.sort)
    about = f"{table.meaning} {PLACES[table.where]}" + (f" In the order of {order}." if order else "")
    return [f"## {table.name}", "", about, "", *_table(("column", "type", "unit", "meaning"), rows), ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return [body[0], "|" + "---|" * len(head), *body[1:]]


def main(arguments: Sequence[str]) -> int:
    """Writes the pages, or with `--check` says which are out of date."""
    stale = [name for name, page in PAGES.items() if not _is_current(HERE / name, page())]
    if "--check" in arguments:
        sys.stderr.writelines(f"docs/{name} is out of date: run python docs/generate.py\n" for name in stale)
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(PAGES[name](), encoding="utf-8")
        sys.stdout.write(f"wrote docs/{name}\n")
    return 0


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
