"""A report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidestep_collector.query.report.diagnosis import Diagnosis
from sidestep_collector.query.report.document import Report, Section, Table


def as_lines(report: Report) -> Iterator[str]:
    """The lines of a report."""
    yield f"{report.title}   ({report.run})"
    yield ", ".join(f"{name} {value}" for name, value in report.facts.items())
    for section in report.sections:
        yield from _section(section)
    yield from _heading("Findings of the rules")
    for row in report.findings:
        yield finding(row)
        yield from (f"    change {line}" for line in row["advice"])
    if not report.findings:
        yield "none"
    yield from _heading("Diagnosis")
    for diagnosis in report.diagnoses:
        yield from _diagnosis(diagnosis)
    if not report.diagnoses:
        beside = "nothing beside these findings" if report.findings else "nothing that is known to go wrong"
        yield f"{beside} shows in the curves"


def finding(row: Mapping[str, Any]) -> str:
    """A finding of the rules in one line."""
    steps = f"step {row['first_step']}" + (f" to {row['last_step']}" if row["last_step"] != row["first_step"] else "")
    return f"{row['severity']}: {row['message']} ({row['rule']}, {steps}, {row['state']})"


def _section(section: Section) -> Iterator[str]:
    yield from _heading(section.title)
    yield from section.lines
    if section.table is not None:
        yield from _table(section.table)


def _diagnosis(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"{diagnosis.severity.upper()}  {diagnosis.title}"
    for line in diagnosis.evidence:
        yield f"    seen   {line}"
    for line in diagnosis.advice:
        yield f"    change {line}"


def _table(table: Table) -> Iterator[str]:
    rows = [list(table.columns), *([cell(value) for value in row] for row in table.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.columns))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def cell(value: str | float | None) -> str:
    """A number with five digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _heading(title: str) -> Iterator[str]:
    yield ""
    yield title
    yield "-" * len(title)
