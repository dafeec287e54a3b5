"""The pages under docs/ say what the code declares."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep_schemas.catalog import METRICS, Metric
from sidestep_schemas.tables import TABLES, Column, Table

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = [
    pytest.param(table, column, id=f"{table.name}.{column.name}") for table in TABLES for column in table.columns
]


def test_generated_pages_are_current() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.tag)
def test_each_metric_has_a_name_and_a_meaning(metric: Metric) -> None:
    assert metric.name.strip()
    assert metric.meaning.endswith(".")


def test_each_metric_is_declared_once() -> None:
    tags = [metric.tag for metric in METRICS]
    assert len(tags) == len(set(tags))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_each_table_has_a_meaning_and_is_sorted_by_columns_it_has(table: Table) -> None:
    assert table.meaning.endswith(".")
    assert set(table.sort) <= {column.name for column in table.columns}


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_each_column_has_a_type_and_a_meaning(table: Table, column: Column) -> None:
    assert column.type.strip(), table.name
    assert column.meaning.strip(), table.name


def test_every_decision_is_numbered_once_and_has_a_title() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert all(page.read_text(encoding="utf-8").startswith("# ") for page in pages)


def test_every_promise_of_delivery_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs" / "specs" / "delivery.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what ")]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, name in named:
            assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), (file, name)
