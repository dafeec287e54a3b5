"""A report as one HTML file with its curves in it: no script, nothing to load from anywhere."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from sidestep_collector.query.report.diagnosis import Diagnosis
from sidestep_collector.query.report.document import Plot, Report, Table
from sidestep_collector.query.report.text import cell, finding

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
body { margin: 2rem auto; max-width: 56rem; padding: 0 1rem }
h1 { margin-bottom: 0 }
h2 { margin-top: 2rem; border-bottom: 1px solid var(--line) }
.soft { color: var(--soft) }
table { border-collapse: collapse }
td, th { padding: .2rem .9rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums }
th { color: var(--soft); font-weight: 600 }
tr { border-bottom: 1px solid var(--line) }
.card { border: 1px solid var(--line); border-left: .4rem solid var(--line); border-radius: .3rem }
.card { padding: .4rem 1rem; margin: 1rem 0 }
.critical { border-left-color: #d1242f }
.warning { border-left-color: #bf8700 }
.info { border-left-color: #0969da }
svg { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; margin-top: .5rem }
"""


def as_page(report: Report) -> str:
    """A report as a whole HTML document."""
    return "\n".join(_page(report)) + "\n"


def _page(report: Report) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    facts = ", ".join(f"{escape(str(name))} {escape(str(value))}" for name, value in report.facts.items())
    yield f'<h1>{escape(report.title)}</h1>\n<p class="soft">run <code>{escape(report.run)}</code>: {facts}</p>'
    yield "<h2>Diagnosis</h2>"
    yield from map(_diagnosis, report.diagnoses)
    if not report.diagnoses:
        yield "<p>Nothing that is known to go wrong shows in the curves.</p>"
    yield "<h2>Findings of the rules</h2>"
    yield "".join(map(_finding, report.findings)) or "<p>None.</p>"
    for section in report.sections:
        yield f"<h2>{escape(section.title)}</h2>"
        yield from (f"<p>{escape(line)}</p>" for line in section.lines)
        if section.table is not None:
            yield _table(section.table)
        yield from map(_svg, section.plots)
    yield "</body>\n</html>"


def _finding(row: Mapping[str, Any]) -> str:
    change = "".join(f"<li>{escape(line)}</li>" for line in row["advice"])
    return f'<div class="card {escape(row["severity"])}">{escape(finding(row))}<ol>{change}</ol></div>'


def _diagnosis(diagnosis: Diagnosis) -> str:
    seen = "".join(f"<li>{escape(line)}</li>" for line in diagnosis.evidence)
    change = "".join(f"<li>{escape(line)}</li>" for line in diagnosis.advice)
    return (
        f'<div class="card {escape(diagnosis.severity)}"><strong>{escape(diagnosis.title)}</strong>'
        f"<ul>{seen}</ul>What to change:<ol>{change}</ol></div>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell(value))}</td>" for value in row) + "</tr>" for row in table.rows)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _svg(plot: Plot) -> str:
    from matplotlib import rc_context  # noqa: PLC0415 - half a second that only a page should cost
    from matplotlib.figure import Figure  # noqa: PLC0415

    # without a salt, names inside of the file differ from one writing to the next
    with rc_context({"svg.hashsalt": "sidestep"}):
        figure = Figure(figsize=(7, 2.8), layout="constrained")
        axes = figure.subplots()
        for name, (epochs, values) in plot.curves.items():
            axes.plot(epochs, values, marker=".", linewidth=1.2, label=name)
        values = [value for _, curve in plot.curves.values() for value in curve if not math.isnan(value)]
        if plot.is_log and values and min(values) > 0:
            axes.set_yscale("log")
        axes.set(xlabel="epoch", title=plot.title)
        axes.legend(fontsize="small")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
