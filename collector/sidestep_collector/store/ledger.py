"""The small tables, in Python: what is committed, and what the next commit will change.

The ledger is as the catalogue on disk. A commit writes into a draft over it; only when the catalogue is in
its place does the ledger take the draft over, so a commit that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from sidestep_collector.blocks import KeySet, Stream
from sidestep_collector.store.records import Key, KeyPart, KnownRun, KnownStream, Part, Row
from sidestep_collector.store.views import CATALOG_TABLES
from sidestep_schemas.tables import TABLE

#: Tables that are asked for all rows of one run or stream.
_GROUPED: Final = frozenset({"attempts", "findings", "key_sets"})


class Ledger:
    """All rows of the catalogue's tables by key."""

    def __init__(self, tables: Mapping[str, Iterable[Row]]) -> None:
        self.tables: dict[str, dict[Key, Row]] = {table.name: {} for table in CATALOG_TABLES}
        self.groups: dict[tuple[str, object], set[Key]] = {}
        draft = Draft(self)
        for table, rows in tables.items():
            for row in rows:
                draft.put(table, row)
        self.accept(draft)

    def accept(self, draft: Draft) -> None:
        """Take over what was committed."""
        for table, changes in draft.changes.items():
            rows = self.tables[table]
            for key, row in changes.items():
                group = self.groups.setdefault((table, key[0]), set()) if table in _GROUPED else set[Key]()
                if row is None:
                    rows.pop(key, None)
                    group.discard(key)
                else:
                    rows[key] = row
                    group.add(key)

    def streams(self) -> list[KnownStream]:
        """Every stream with its watermark."""
        runs = {row["run_uid"]: row for row in self.tables["runs"].values()}
        return [
            KnownStream(
                Stream(
                    key=bytes.fromhex(row["stream"]),
                    run_uid=bytes.fromhex(row["run_uid"]),
                    run=runs[row["run_uid"]]["run"],
                    project=runs[row["run_uid"]]["project"],
                    rank=row["rank"],
                    attempt=row["attempt"],
                ),
                row["watermark"],
                row["lost"],
                row["ended"],
                tuple(self._key_sets(row["stream"])),
                self.tables["attempts"][runs[row["run_uid"]]["run"], row["attempt"], row["rank"]]["cause"],
            )
            for row in self.tables["ingest"].values()
        ]

    def runs(self) -> dict[bytes, KnownRun]:
        """Every run by its identity."""
        return {
            bytes.fromhex(row["run_uid"]): KnownRun(row["run"], row["project"], row["started"] * 1000, row["state"])
            for row in self.tables["runs"].values()
        }

    def findings(self, runs: Iterable[str]) -> list[Row]:
        """Findings of some runs, oldest first, with the run's project."""
        projects = {row["run"]: row["project"] for row in self.tables["runs"].values()}
        keys = (key for run in runs for key in self.groups.get(("findings", run), ()))
        rows = [self.tables["findings"][key] for key in keys]
        return [row | {"project": projects[row["run"]]} for row in sorted(rows, key=lambda row: row["first_step"])]

    def parts(self) -> list[Part]:
        """The manifest, oldest first."""
        return [
            Part(row["part"], row["table_name"], row["level"], row["row_count"], row["bytes"])
            for row in self.tables["parts"].values()
        ]

    def _key_sets(self, stream: str) -> Iterable[KeySet]:
        for key in sorted(self.groups.get(("key_sets", stream), ()), key=lambda key: str(key[1])):
            row = self.tables["key_sets"][key]
            yield KeySet(row["id"], row["dtype"], row["tier"], tuple(row["names"]), tuple(row["reductions"]))


class Draft:
    """Changes over a ledger. A change to None is a row that goes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.changes: dict[str, dict[Key, Row | None]] = {}

    def get(self, table: str, *key: KeyPart) -> Row | None:
        """A row as it will be."""
        changed = self.changes.get(table, {})
        return changed[key] if key in changed else self._ledger.tables[table].get(key)

    def put(self, table: str, row: Row) -> None:
        """Write a row, over an older one of the same key."""
        self.changes.setdefault(table, {})[tuple(row[name] for name in TABLE[table].sort)] = row

    def drop(self, table: str, key: Key) -> None:
        """Remove a row."""
        self.changes.setdefault(table, {})[key] = None

    def group(self, table: str, first: str) -> list[Row]:
        """Rows of a grouped table by the first part of their key."""
        keys = set(self._ledger.groups.get((table, first), ()))
        keys.update(key for key in self.changes.get(table, {}) if key[0] == first)
        return [row for key in keys if (row := self.get(table, *key)) is not None]

    def rows(self, table: str) -> list[Row]:
        """All rows of a table as they will be, in order."""
        rows = {**self._ledger.tables[table], **self.changes.get(table, {})}
        return [row for _, row in sorted(rows.items(), key=lambda item: item[0]) if row is not None]

    def add_parts(self, parts: Iterable[Part], now_us: int) -> None:
        """Name parts in the manifest."""
        for part in parts:
            row = {"part": part.part, "table_name": part.table, "level": part.level}
            self.put("parts", row | {"row_count": part.rows, "bytes": part.nbytes, "created": now_us})

    def files(self, folder: Path) -> dict[str, list[Path]]:
        """The parts of each parts table, as the views will name them."""
        files: dict[str, list[Path]] = {}
        for row in self.rows("parts"):
            files.setdefault(row["table_name"], []).append(folder / row["part"])
        return files
