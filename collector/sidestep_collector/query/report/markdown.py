"""A report as Markdown: for a pull request or a note. Curves stay out of it; the page has them."""

from __future__ import annotations

from collections.abc import Iterator

from sidestep_collector.query.report.document import Report, Table
from sidestep_collector.query.report.text import cell, finding


def as_markdown(report: Report) -> str:
    """A report as Markdown."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {_plain(report.title)}"
    yield ""
    yield (
        f"Run `{report.run}`: "
        + ", ".join(f"{name} {_plain(str(value))}" for name, value in report.facts.items())
        + "."
    )
    yield from _diagnoses(report)
    yield "\n## Findings of the rules\n"
    for row in report.findings:
        yield f"- {_plain(finding(row))}"
        yield from (f"  - change: {_plain(line)}" for line in row["advice"])
    if not report.findings:
        yield "None."
    for section in report.sections:
        yield f"\n## {section.title}\n"
        yield from (f"- {_plain(line)}" for line in section.lines)
        if section.table is not None:
            yield from _table(section.table)


def _diagnoses(report: Report) -> Iterator[str]:
    yield "\n## Diagnosis\n"
    if not report.diagnoses:
        yield "Nothing that is known to go wrong shows in the curves."
    for diagnosis in report.diagnoses:
        yield f"**{diagnosis.severity}: {_plain(diagnosis.title)}**\n"
        yield from (f"- seen: {_plain(line)}" for line in diagnosis.evidence)
        yield from (f"- change: {_plain(line)}" for line in diagnosis.advice)
        yield ""


def _table(table: Table) -> Iterator[str]:
    yield "| " + " | ".join(table.columns) + " |"
    yield "|" + "---|" * len(table.columns)
    for row in table.rows:
        yield "| " + " | ".join(_plain(cell(value)) for value in row) + " |"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for sign in "\\`*_<>|[]#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
