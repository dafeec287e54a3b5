"""The local store: one folder, one writer, any number of readers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import duckdb
import numpy as np
from numpy.typing import NDArray

from sidestep_collector.blocks import Batch, EpochRows, Stream
from sidestep_collector.store import account, catalogue
from sidestep_collector.store.catalogue import Catalogue
from sidestep_collector.store.compaction import Compactor, choose
from sidestep_collector.store.folder import Superseded, lock, remove, remove_unpublished, store_dir, sync
from sidestep_collector.store.ledger import Draft, Ledger
from sidestep_collector.store.parts import PartWriter
from sidestep_collector.store.records import KnownRun, KnownStream, Row
from sidestep_collector.store.views import merged_epochs, parts_query
from sidestep_schemas.errors import StoreWriteError
from sidestep_schemas.tables import STORE_VERSION, TABLE

#: A reader that opened the store keeps the parts it saw for so long.
GRACE_SECONDS = 900.0
#: Runs whose epochs are asked for at once: a query for each took longer to plan than to answer.
_RUNS_AT_ONCE: Final = 32


class Store:
    """The writing end of a data folder. Methods may be called from several threads.

    Args:
        root: the data folder, absolute.
        handle: descriptor that holds its lock.
        ledger: the small tables as they are on disk.
        clock: seconds since the Unix epoch.
        grace_seconds: how long parts stay that were merged into others.
    """

    def __init__(
        self, root: Path, handle: int, ledger: Ledger, *, clock: Callable[[], float], grace_seconds: float
    ) -> None:
        self._root = root
        self._folder = store_dir(root)
        self._handle = handle
        self._ledger = ledger
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._superseded = Superseded(self._folder)
        self._writer = PartWriter(self._folder)
        self._catalogue = Catalogue(self._folder)
        self._compactor = Compactor(self._folder)
        self._marks: dict[bytes, tuple[Stream, str]] = {}
        self._lock = threading.Lock()
        self._compacting = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, root: Path, *, clock: Callable[[], float] = time.time, grace_seconds: float = GRACE_SECONDS) -> Self:
        """Take a data folder and load what is in it.

        Raises:
            FolderError: it cannot be written, is taken by another collector, or holds something else.
            VersionError: a newer version wrote it; nothing was touched.
            StoreWriteError: the first catalogue could not be written.
        """
        root = root.absolute()
        handle = lock(root)
        try:
            tables = catalogue.load(store_dir(root))
            store = cls(root, handle, Ledger(tables or {}), clock=clock, grace_seconds=grace_seconds)
            store._recover(fresh=tables is None)
        except BaseException:
            os.close(handle)
            raise
        return store

    def known(self) -> list[KnownStream]:
        """Every stream that was ever committed; key sets only of those that did not end."""
        with self._lock:
            return self._ledger.streams()

    def runs(self) -> dict[bytes, KnownRun]:
        """Every run by its 16-byte identity."""
        with self._lock:
            return self._ledger.runs()

    def findings(self, runs: Iterable[str]) -> list[Row]:
        """Findings of runs as rows, with their project; times are microseconds, evidence is JSON text."""
        with self._lock:
            return self._ledger.findings(runs)

    def files(self) -> dict[str, int]:
        """Length of each TensorBoard file, relative to the data folder, that belongs to the last commit."""
        with self._lock:
            return {row["path"]: row["bytes"] for row in self._ledger.tables["files"].values()}

    def epoch_rows(self, since: Mapping[str, int]) -> list[EpochRows]:
        """Merged aggregates of runs, each from an epoch on, one for each stream and epoch."""
        groups: dict[tuple[str, int, int, int], list[tuple[Any, ...]]] = {}
        with self._lock:
            streams = {(s.stream.run, s.stream.rank, s.stream.attempt): s.stream for s in self._ledger.streams()}
            files = Draft(self._ledger).files(self._folder).get("epochs", [])
            merged = merged_epochs(parts_query(TABLE["epochs"], files))
            with duckdb.connect(":memory:") as connection:
                for start in range(0, len(since), _RUNS_AT_ONCE):
                    some = list(since.items())[start : start + _RUNS_AT_ONCE]
                    given = [*(run for run, _ in some), *(part for one in some for part in one)]
                    for row in connection.execute(_since_query(merged, len(some)), given).fetchall():
                        groups.setdefault((row[0], *row[2:5]), []).append(row)
        return [_epoch_rows(streams[key[:3]], key[3], groups[key]) for key in sorted(groups) if key[:3] in streams]

    def set_state(self, stream: Stream, cause: str) -> None:
        """Say that a stream ended without a word: "killed" or "lost"; or of a lost one that it is "running" after all.

        Takes effect with the next commit, and waits for none. A stream that said its own end keeps it; one that was
        lost and sends records again runs again.
        """
        self._marks[stream.key] = (stream, cause)

    def commit(self, batch: Batch, files: Mapping[str, int]) -> None:
        """Store a batch and the watermarks it leads to, wholly or not at all.

        Args:
            batch: what a flush commits.
            files: lengths of TensorBoard files that changed.

        Raises:
            StoreWriteError: nothing became visible; the same batch may be committed again.
        """
        with self._lock:
            if self._closed:
                raise StoreWriteError(f"{self._folder}: the store is closed")
            now_us = self._now_us()
            draft = Draft(self._ledger)
            marks = dict(self._marks)
            account.enter(draft, batch, marks, now_us)
            for path, length in files.items():
                draft.put("files", {"path": path, "bytes": length})
            try:
                parts = self._writer.write(batch, self._commit_number + 1)
            except (OSError, duckdb.Error) as error:
                self._writer.reset()
                raise self._failed(error) from error
            draft.add_parts(parts, now_us)
            self._publish(draft, now_us, written=[self._folder / part.part for part in parts])
            for key, mark in marks.items():
                if self._marks.get(key) is mark:  # else it was marked anew meanwhile
                    del self._marks[key]

    def compact(self) -> bool:
        """Take one step of tidying: remove parts whose time is over, merge parts of a level into one.

        Returns:
            Whether there was anything to do.

        Raises:
            StoreWriteError: the merge failed; the old parts stand.
        """
        with self._compacting:
            with self._lock:
                if self._closed:
                    return False
                parts = self._ledger.parts()
                number = self._commit_number
            try:
                swept = self._superseded.sweep({part.part for part in parts}, self._clock(), self._grace_seconds)
                chosen = choose(parts)
                if not chosen:
                    return swept > 0
                merged = self._compactor.merge(chosen, number)
            except (OSError, duckdb.Error) as error:
                if self._closed:
                    return False
                raise self._failed(error) from error
            with self._lock:
                old = [part.part for part in chosen]
                try:
                    self._superseded.add(old, self._clock())
                except OSError as error:
                    remove((self._folder / merged.part,))
                    raise self._failed(error) from error
                draft = Draft(self._ledger)
                for part in old:
                    draft.drop("parts", (part,))
                draft.add_parts([merged], self._now_us())
                self._publish(draft, self._now_us(), written=[self._folder / merged.part])
            return True

    def close(self) -> None:
        """Give the folder back. A merge that is under way is given up. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._compactor.interrupt()
        with self._compacting, self._lock:
            for engine in (self._compactor, self._catalogue, self._writer):
                engine.close()
            os.close(self._handle)

    @property
    def _commit_number(self) -> int:
        info = self._ledger.tables["store_info"].get(())
        return int(info["commit_number"]) if info else 0

    def _recover(self, *, fresh: bool) -> None:
        manifest = {part.part for part in self._ledger.parts()}
        remove_unpublished(self._folder)
        self._superseded.remove_leftovers(manifest)
        info = self._ledger.tables["store_info"].get(())
        if fresh or info is None or info["root"] != str(self._root):
            self._publish(Draft(self._ledger), self._now_us(), written=[])

    def _publish(self, draft: Draft, now_us: int, written: list[Path]) -> None:
        """Make a draft the state of the store; on failure the state before it stands, and `written` goes."""
        draft.put(
            "store_info",
            {
                "version": STORE_VERSION,
                "root": str(self._root),
                "commit_number": self._commit_number + 1,
                "committed": now_us,
            },
        )
        changed = {table: draft.rows(table) for table in {*draft.changes, *self._catalogue.missing()}}
        try:
            self._catalogue.prepare(changed, draft.files(self._folder))
            self._catalogue.swap()
        except (OSError, duckdb.Error) as error:
            remove(written)
            self._catalogue.reset()
            raise self._failed(error) from error
        try:
            sync(self._folder)
        except OSError as error:
            # Readers may have seen it, so its parts stay; but a repeated commit starts from the state before.
            self._catalogue.reset()
            raise self._failed(error) from error
        self._ledger.accept(draft)

    def _failed(self, error: Exception) -> StoreWriteError:
        return StoreWriteError(f"{self._folder}: could not be written ({error}); make room on the disk")

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)


def _since_query(merged: str, runs: int) -> str:
    """Rows of so many runs, each from an epoch on; its parameters are the runs, then each run with its epoch."""
    columns = ", ".join(column.name for column in TABLE["epochs"].columns)
    # The list of runs reaches the parts, what goes with each of them does not.
    known = ", ".join(["?"] * runs)
    each = " or ".join(["(run = ? and epoch >= ?)"] * runs)
    return f"select {columns} from ({merged}) where run in ({known}) and ({each}) order by all"  # noqa: S608 - our own


def _epoch_rows(stream: Stream, epoch: int, rows: list[tuple[Any, ...]]) -> EpochRows:
    names = [column.name for column in TABLE["epochs"].columns]
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))

    def whole(name: str) -> NDArray[np.int64]:
        return np.array(columns[name], dtype=np.int64)

    def real(name: str) -> NDArray[np.float64]:
        return np.array([np.nan if value is None else value for value in columns[name]], dtype=np.float64)

    return EpochRows(
        stream=stream,
        epoch=epoch,
        names=tuple(columns["metric"]),
        n=whole("n"),
        n_nonfinite=whole("n_nonfinite"),
        vmin=real("vmin"),
        vmax=real("vmax"),
        mean=real("mean"),
        m2=real("m2"),
        vfirst=real("vfirst"),
        vlast=real("vlast"),
        first_seq=whole("first_seq"),
        last_seq=whole("last_seq"),
    )
