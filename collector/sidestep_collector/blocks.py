"""Data in flight between the stages of the collector. No behaviour: what a stage hands to the next.

Arrays are numpy, one row a record; a block never changes after it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidestep_schemas.catalog import Metric


@dataclass(frozen=True, slots=True)
class Stream:
    """One start of one rank of one run, as the store knows it.

    Attributes:
        key: 8 bytes, unique to the process start; the identity on the wire.
        run_uid: 16 bytes.
        run: id of the run as stored, unique in the store.
        project: project of the run.
        rank: rank of the process.
        attempt: number that the store gave this start: unique for (run, rank).
    """

    key: bytes
    run_uid: bytes
    run: str
    project: str
    rank: int
    attempt: int


@dataclass(frozen=True, slots=True)
class KeySet:
    """The names that the values of a scalars record stand for, in order.

    `derived` marks one of the collector's own: its values follow from others, at the moments of records that are
    stored already.
    """

    id: int
    dtype: int
    tier: str
    names: tuple[str, ...]
    reductions: tuple[str, ...]
    derived: bool = False


@dataclass(frozen=True, slots=True)
class ScalarBlock:
    """Records of scalars of one stream and one key set, in the order of their seq.

    Attributes:
        seq, t_ns, step: int64, shape (records,).
        epoch: float64, shape (records,); NaN outside epochs.
        values: float32 or float64, shape (records, len(key_set.names)); NaN and infinities are data.
    """

    stream: Stream
    key_set: KeySet
    seq: NDArray[np.int64]
    t_ns: NDArray[np.int64]
    step: NDArray[np.int64]
    epoch: NDArray[np.float64]
    values: NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Moment:
    """Where and when a record that is not scalars was taken. `epoch` is NaN outside epochs."""

    stream: Stream
    seq: int
    t_ns: int
    step: int
    epoch: float


@dataclass(frozen=True, slots=True)
class Tensor:
    """A small tensor: elements row-major and little-endian."""

    at: Moment
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """An image as PNG."""

    at: Moment
    name: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram: `edges` has one element more than `counts`, both float64."""

    at: Moment
    name: str
    edges: NDArray[np.float64]
    counts: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Text:
    """A text. `what` is text, config (JSON), tags (JSON array), notes or summary (JSON)."""

    at: Moment
    what: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: start, epoch_begin, epoch_end, mark, checkpoint, end ..."""

    at: Moment
    event: str
    details: Mapping[str, Any]


Item = Tensor | Image | Histogram | Text | Event


@dataclass(frozen=True, slots=True)
class EpochRows:
    """Aggregates of one stream and epoch over some of its records: rows of the table `epochs`, to be merged.

    All arrays have shape (len(names),); `vmin`, `vmax`, `mean` are NaN where n is 0.
    """

    stream: Stream
    epoch: int
    names: tuple[str, ...]
    n: NDArray[np.int64]
    n_nonfinite: NDArray[np.int64]
    vmin: NDArray[np.float64]
    vmax: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    vfirst: NDArray[np.float64]
    vlast: NDArray[np.float64]
    first_seq: NDArray[np.int64]
    last_seq: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StoredValues:
    """Values of a metric on one rank in one epoch, by rising step; `reduction` is how ranks combine, as on the wire.

    `steps` and `values` have the same length.
    """

    run: str
    rank: int
    attempt: int
    epoch: int
    metric: str
    reduction: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EpochSummary:
    """An epoch of a run that has ended, over all its ranks: what the epoch document is made from.

    `ranks` is how many ranks contributed; `statistics` maps a tag to the names of
    `sidestep_schemas.epoch.STATISTICS`, None where a number is not finite or unknown. `last_t_ns` is when
    its last record was taken (0 where it had none). `derived` names the tags that nobody logged: they follow
    from others.
    """

    run: str
    project: str
    epoch: int
    global_step: int
    wall_time_sec: float
    ranks: int
    statistics: Mapping[str, Mapping[str, float | int | None]]
    last_t_ns: int = 0
    derived: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PeriodSummary:
    """Epochs `first_epoch` to `last_epoch` of a run taken together; `statistics` as in `EpochSummary`."""

    run: str
    project: str
    first_epoch: int
    last_epoch: int
    statistics: Mapping[str, Mapping[str, float | int | None]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule found, as it stands: a row of the table `findings`.

    Attributes:
        finding: unique in its run: rule, subject and the step it began at.
        state: pending, firing or resolved; "gone" for one that was pending and came to nothing.
        rank: the rank it was seen on first; -1 for one that is judged over all ranks.
        value, threshold: of the last observation beyond it; for a ratio both are ratios.
        evidence: the last values with their steps and their usual value, and what a restart needs to go on.
        news: what is to be told: opened, worse, resolved, or "" for none.
    """

    run: str
    project: str
    finding: str
    rule: str
    profile: str
    subject: str
    metric: str
    rank: int
    severity: str
    state: str
    first_step: int
    last_step: int
    first_t_ns: int
    last_t_ns: int
    count: int
    value: float
    threshold: float
    message: str
    advice: tuple[str, ...]
    evidence: Mapping[str, Any]
    news: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that a stream declared lost."""

    stream: Stream
    first_seq: int
    records: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream is, once a batch is committed. `lost` counts the records below the watermark that
    were declared lost, over the stream's life."""

    stream: Stream
    watermark: int
    lost: int
    ended: bool


@dataclass(slots=True)
class Batch:
    """What one flush commits: rows, aggregates, and the watermarks they carry the streams to.

    `metrics` is what is declared of tags that came up, where a run's profile declares it.
    """

    blocks: list[ScalarBlock] = field(default_factory=list[ScalarBlock])
    items: list[Item] = field(default_factory=list[Item])
    epochs: list[EpochRows] = field(default_factory=list[EpochRows])
    summaries: list[EpochSummary] = field(default_factory=list[EpochSummary])
    periods: list[PeriodSummary] = field(default_factory=list[PeriodSummary])
    gaps: list[Gap] = field(default_factory=list[Gap])
    progress: list[Progress] = field(default_factory=list[Progress])
    key_sets: list[tuple[Stream, KeySet]] = field(default_factory=list[tuple[Stream, KeySet]])
    findings: list[Finding] = field(default_factory=list[Finding])
    metrics: dict[str, Metric] = field(default_factory=dict[str, Metric])
    nbytes: int = 0
