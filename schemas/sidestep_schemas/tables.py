"""The tables of the store, as data: the writer creates them, the documentation lists them, tests hold both.

A table lives in one of two places. `CATALOG` tables are small and real: they stand in the catalogue file
itself, which is replaced as a whole at every commit. `PARTS` tables grow with steps: they are views over
immutable Parquet files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

#: Version of the store's layout; a newer one on disk is refused untouched.
STORE_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its DuckDB type, its unit ("" where it has none) and what it means."""

    name: str
    type: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table. `sort` is the order of rows in a part (and the key of a catalogue table)."""

    name: str
    where: Literal["catalog", "parts"]
    meaning: str
    sort: tuple[str, ...]
    columns: tuple[Column, ...]


def _column(name: str, type_: str, meaning: str, unit: str = "") -> Column:
    return Column(name, type_, unit, meaning)


_RUN = _column("run", "VARCHAR", "id of the run")
_METRIC = _column("metric", "VARCHAR", "tag of the metric, as in TensorBoard")
_RANK = _column("rank", "INTEGER", "rank of the process in its job, from 0")
_ATTEMPT = _column("attempt", "INTEGER", "which start of this run on this rank, from 0; a resume is the next one")
_STEP = _column("step", "BIGINT", "optimizer step, or the step that was given; -1 where there is none", "steps")
_EPOCH = _column("epoch", "DOUBLE", "epoch the record belongs to, fractions allowed; NULL outside epochs", "epochs")
_WALL = _column("wall_time", "TIMESTAMP", "when the training process took the record", "UTC")
_SEQ = _column("seq", "BIGINT", "number of the record in its stream (run, rank, attempt), from 0")
_NAME = _column("name", "VARCHAR", "tag it was logged under")

TABLES: Final[tuple[Table, ...]] = (
    Table(
        "runs",
        "catalog",
        "One row a run.",
        ("run",),
        (
            _RUN,
            _column("run_uid", "VARCHAR", "128-bit identity of the run, in hexadecimal"),
            _column("project", "VARCHAR", "project it belongs to"),
            _column("name", "VARCHAR", "name for people"),
            _column("group", "VARCHAR", "group within the project (a sweep, say)"),
            _column("state", "VARCHAR", "running, finished, failed, killed or lost"),
            _column("started", "TIMESTAMP", "start of the first attempt", "UTC"),
            _column("ended", "TIMESTAMP", "end of the last attempt; NULL while it runs", "UTC"),
            _column("world_size", "INTEGER", "number of ranks that were announced"),
            _column("config", "JSON", "configuration as the script gave it"),
            _column("tags", "VARCHAR[]", "tags"),
            _column("notes", "VARCHAR", "free text"),
            _column("profile", "VARCHAR", "profile of metrics that was chosen"),
            _column("schema_version", "INTEGER", "version of this layout that wrote the row"),
        ),
    ),
    Table(
        "attempts",
        "catalog",
        "One row for each start of a run on each rank: the streams of records.",
        ("run", "attempt", "rank"),
        (
            _RUN,
            _ATTEMPT,
            _RANK,
            _column("stream", "VARCHAR", "64-bit identity of the stream, in hexadecimal"),
            _column("start_step", "BIGINT", "first step that was logged; NULL before it", "steps"),
            _column("started", "TIMESTAMP", "start", "UTC"),
            _column("ended", "TIMESTAMP", "end; NULL while it runs", "UTC"),
            _column("cause", "VARCHAR", "why it ended: finished, failed, killed or lost; NULL while it runs"),
            _column("host", "VARCHAR", "host name"),
            _column("pid", "BIGINT", "process id on that host"),
        ),
    ),
    Table(
        "metrics",
        "catalog",
        "One row a metric that was ever seen: a new metric is a row, never a column.",
        ("metric",),
        (
            _METRIC,
            _column("name", "VARCHAR", "name for people"),
            _column("kind", "VARCHAR", "scalar, histogram, image, tensor or text"),
            _column("block", "VARCHAR", "block of the network it speaks of; NULL where it speaks of all"),
            _column("unit", "VARCHAR", "unit; empty where it has none or is unknown"),
            _column("better", "VARCHAR", "lower, higher, or NULL where neither is"),
            _column("reduction", "VARCHAR", "how the values of several ranks become one: mean, sum, max or l2"),
        ),
    ),
    Table(
        "snapshots",
        "parts",
        "One row a record of scalars: when a step was taken. Wall time stands here, once a record.",
        ("run", "rank", "attempt", "step"),
        (
            _RUN,
            _ATTEMPT,
            _RANK,
            _STEP,
            _EPOCH,
            _column("tier", "VARCHAR", "cadence of the record: step, epoch or periodic"),
            _WALL,
            _SEQ,
        ),
    ),
    Table(
        "points",
        "parts",
        "One row a value, never thinned, NaN and infinities kept.",
        ("run", "metric", "rank", "attempt", "step"),
        (_RUN, _METRIC, _RANK, _ATTEMPT, _STEP, _column("value", "DOUBLE", "the value", "see metrics.unit")),
    ),
    Table(
        "reductions",
        "parts",
        "Metrics of streams whose ranks combine otherwise than `metrics.reduction` says: a sharded model's, of which "
        "each rank has a part. A row may stand twice.",
        ("run", "metric", "rank", "attempt"),
        (
            _RUN,
            _METRIC,
            _RANK,
            _ATTEMPT,
            _column("reduction", "VARCHAR", "mean, sum, max, l2 (root of the sum of squares), rms (root mean square)"),
            _column("weight", "VARCHAR", "tag of the metric that weighs each rank's value; NULL where nothing does"),
        ),
    ),
    Table(
        "epochs",
        "parts",
        "Aggregates of a metric over an epoch, mergeable over ranks. Non-finite values are counted, not averaged.",
        ("run", "metric", "rank", "attempt", "epoch"),
        (
            _RUN,
            _METRIC,
            _RANK,
            _ATTEMPT,
            _column("epoch", "BIGINT", "whole part of the records' epoch", "epochs"),
            _column("n", "BIGINT", "finite values"),
            _column("n_nonfinite", "BIGINT", "NaN and infinite values"),
            _column("vmin", "DOUBLE", "least finite value; NULL when n is 0"),
            _column("vmax", "DOUBLE", "greatest finite value; NULL when n is 0"),
            _column("mean", "DOUBLE", "mean of the finite values; NULL when n is 0"),
            _column("m2", "DOUBLE", "sum of squared deviations from the mean; variance = m2 / (n - 1)"),
            _column("vfirst", "DOUBLE", "first value, finite or not"),
            _column("vlast", "DOUBLE", "last value, finite or not"),
            _column("first_seq", "BIGINT", "record of the first value"),
            _column("last_seq", "BIGINT", "record of the last value"),
        ),
    ),
    Table(
        "tensors",
        "parts",
        "Small tensors.",
        ("run", "name", "rank", "attempt", "step"),
        (
            *(_RUN, _ATTEMPT, _RANK, _STEP, _EPOCH, _WALL, _SEQ, _NAME),
            _column("dtype", "VARCHAR", "element type: float32, bfloat16, int64 ..."),
            _column("shape", "BIGINT[]", "shape"),
            _column("data", "BLOB", "elements, row-major, little-endian"),
        ),
    ),
    Table(
        "images",
        "parts",
        "Images.",
        ("run", "name", "rank", "attempt", "step"),
        (*(_RUN, _ATTEMPT, _RANK, _STEP, _EPOCH, _WALL, _SEQ, _NAME), _column("png", "BLOB", "the image as PNG")),
    ),
    Table(
        "histograms",
        "parts",
        "Histograms.",
        ("run", "name", "rank", "attempt", "step"),
        (
            *(_RUN, _ATTEMPT, _RANK, _STEP, _EPOCH, _WALL, _SEQ, _NAME),
            _column("edges", "DOUBLE[]", "edges of the bins, one more than counts"),
            _column("counts", "DOUBLE[]", "values in each bin"),
        ),
    ),
    Table(
        "texts",
        "parts",
        "Texts that were logged.",
        ("run", "name", "rank", "attempt", "step"),
        (*(_RUN, _ATTEMPT, _RANK, _STEP, _EPOCH, _WALL, _SEQ, _NAME), _column("text", "VARCHAR", "the text")),
    ),
    Table(
        "events",
        "parts",
        "What happened: starts, epoch and validation boundaries, checkpoints, marks, ends.",
        ("run", "rank", "attempt", "seq"),
        (
            *(_RUN, _ATTEMPT, _RANK, _STEP, _EPOCH, _WALL, _SEQ),
            _column(
                "event",
                "VARCHAR",
                "start, epoch_begin, epoch_end, mark, checkpoint, end ...; of the collector: post_mortem, hang, "
                "hang_over, heard_again",
            ),
            _column("details", "JSON", "what is known of it"),
        ),
    ),
    Table(
        "findings",
        "catalog",
        "What the rules found: one row for each rule, subject and time it began. At most 64 for each rule of a run.",
        ("run", "finding"),
        (
            _RUN,
            _column("finding", "VARCHAR", "unique in its run: rule, subject and the step it began at"),
            _column("rule", "VARCHAR", "rule that found it"),
            _column("profile", "VARCHAR", "profile that has the rule"),
            _column("subject", "VARCHAR", "block, level or the like it speaks of; empty where it speaks of all"),
            _column("metric", "VARCHAR", "tag of the metric that was judged"),
            _column("rank", "INTEGER", "rank it was seen on first; -1 where all ranks were judged together"),
            _column("severity", "VARCHAR", "info, warning or critical; it rises and does not fall"),
            _column("state", "VARCHAR", "pending (too short yet to count), firing or resolved"),
            _column("first_step", "BIGINT", "step of the first value beyond the bound", "steps"),
            _column("last_step", "BIGINT", "step of the last value beyond it; where resolved, of its end", "steps"),
            _column("first_time", "TIMESTAMP", "when the first value was taken", "UTC"),
            _column("last_time", "TIMESTAMP", "when the last was taken", "UTC"),
            _column("count", "BIGINT", "values beyond the bound while it fired"),
            _column("value", "DOUBLE", "last value beyond the bound; of a rule of ratios their ratio"),
            _column("threshold", "DOUBLE", "the bound; NULL for a rule that asks for finite numbers"),
            _column("message", "VARCHAR", "what was found, in a sentence"),
            _column("advice", "VARCHAR[]", "what to change, the first thing first"),
            _column("evidence", "JSON", "last values, their steps, which were beyond, their usual value (baseline)"),
        ),
    ),
    Table(
        "ingest",
        "catalog",
        "Watermarks: how far each stream is stored. Committed together with the rows they count.",
        ("run_uid", "rank", "stream"),
        (
            _column("run_uid", "VARCHAR", "128-bit identity of the run, in hexadecimal"),
            _RANK,
            _column("stream", "VARCHAR", "64-bit identity of the stream, in hexadecimal"),
            _ATTEMPT,
            _column("watermark", "BIGINT", "records stored: all with seq below it"),
            _column("lost", "BIGINT", "records below the watermark that were declared lost"),
            _column("ended", "BOOLEAN", "the stream said its end"),
            _column("updated", "TIMESTAMP", "last commit", "UTC"),
        ),
    ),
    Table(
        "key_sets",
        "catalog",
        "The sets of names that a stream's scalar records refer to by number.",
        ("stream", "id"),
        (
            _column("stream", "VARCHAR", "64-bit identity of the stream, in hexadecimal"),
            _column("id", "BIGINT", "number of the key set in its stream"),
            _column("dtype", "INTEGER", "code of the values' type: 0 float32, 1 float64"),
            _column("tier", "VARCHAR", "cadence: step, epoch or periodic"),
            _column("names", "VARCHAR[]", "tags, in the order of the values"),
            _column("reductions", "VARCHAR[]", "how ranks combine, by name; empty for the mean"),
        ),
    ),
    Table(
        "gaps",
        "catalog",
        "What was lost, and why. Empty is the rule.",
        ("run", "rank", "attempt", "first_seq"),
        (
            _RUN,
            _RANK,
            _ATTEMPT,
            _column("first_seq", "BIGINT", "first record that is missing"),
            _column("records", "BIGINT", "how many are missing"),
            _column("reason", "VARCHAR", "why"),
            _column("noticed", "TIMESTAMP", "when the collector heard of it", "UTC"),
        ),
    ),
    Table(
        "files",
        "catalog",
        "How far each TensorBoard file is written, committed with the rows: after a crash it is cut back to here.",
        ("path",),
        (
            _column("path", "VARCHAR", "file, relative to the data folder"),
            _column("bytes", "BIGINT", "length that belongs to this commit", "bytes"),
        ),
    ),
    Table(
        "parts",
        "catalog",
        "The manifest: every immutable file that the views read.",
        ("part",),
        (
            _column("part", "VARCHAR", "file, relative to the store's folder"),
            _column("table_name", "VARCHAR", "table it belongs to"),
            _column("level", "INTEGER", "how often its rows were merged, from 0"),
            _column("row_count", "BIGINT", "rows"),
            _column("bytes", "BIGINT", "size on disk", "bytes"),
            _column("created", "TIMESTAMP", "when it was committed", "UTC"),
        ),
    ),
    Table(
        "store_info",
        "catalog",
        "One row: what wrote this store.",
        (),
        (
            _column("version", "INTEGER", "version of the layout"),
            _column("root", "VARCHAR", "folder that the views point to"),
            _column("commit_number", "BIGINT", "commits so far"),
            _column("committed", "TIMESTAMP", "last commit", "UTC"),
        ),
    ),
)

#: Views that are derived from the tables.
DERIVED_VIEWS: Final[dict[str, str]] = {
    "points_current": "points without abandoned branches: for each step of a run, metric and rank the latest attempt",
    "points_over_ranks": "the ranks of a step as one, of each its latest attempt: run, metric, step, ranks (how many "
    "have a value), reduction, value (combined by it), vmin and vmax over ranks, rank_min and rank_max (which they "
    "are), and n_nonfinite. What is not finite is left out of means and extremes, and makes sums and norms so. Where "
    "fewer ranks than usual have spoken yet, a sum or norm is of those",
}

TABLE: Final[dict[str, Table]] = {table.name: table for table in TABLES}
