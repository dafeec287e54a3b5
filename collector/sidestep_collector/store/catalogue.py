"""The catalogue file: read at the start, then replaced as a whole by an atomic rename at every commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import duckdb

from sidestep_collector.store import rows
from sidestep_collector.store.folder import CATALOGUE, NEXT, remove_unpublished, sync
from sidestep_collector.store.parts import engine
from sidestep_collector.store.records import Row
from sidestep_collector.store.text import identifier, quoted
from sidestep_collector.store.views import CATALOG_TABLES, create_table, create_views
from sidestep_schemas.errors import FolderError, VersionError
from sidestep_schemas.tables import STORE_VERSION, TABLE, Table

#: Read by DuckDB 1.2 and all later ones. Small blocks, or a table of three rows takes 256 KiB; no
#: write-ahead log, for the file is either renamed whole or thrown away.
_OPTIONS: Final = "STORAGE_VERSION 'v1.2.0', BLOCK_SIZE 16384, RECOVERY_MODE no_wal_writes"


class Catalogue:
    """Publishes catalogue files. Not thread-safe: the store's lock guards it.

    The tables stand in a DuckDB in memory, so a publish hands over only the rows of tables that changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._engine = _engine(folder)
        self._held: set[str] = set()

    def prepare(self, changed: Mapping[str, Sequence[Row]], files: Mapping[str, Sequence[Path]]) -> None:
        """Write the next catalogue beside the present one, fsynced.

        Args:
            changed: all rows of each table that changed.
            files: the parts of each parts table.
        """
        # What a publish that fails has changed here is not what is on disk: such tables must come again.
        self._held.difference_update(changed)
        for name, content in changed.items():
            table = TABLE[name]
            self._engine.execute(create_table(table))
            if content:
                self._engine.execute(f"insert into {identifier(name)} {rows.select(table)}", [rows.dump(content)])
        remove_unpublished(self._folder)
        self._engine.execute(f"attach {quoted(str(self._folder / NEXT))} as next ({_OPTIONS})")
        self._engine.execute("use next; begin")
        self._engine.execute("; ".join(_statements(files)))
        self._engine.execute("commit; use memory; detach next")
        sync(self._folder / NEXT)
        self._held.update(changed)

    def swap(self) -> None:
        """Put the next catalogue in the place of the present one: this is the commit."""
        (self._folder / NEXT).replace(self._folder / CATALOGUE)

    def missing(self) -> Iterable[str]:
        """Tables whose rows must all be handed over again."""
        return (table.name for table in CATALOG_TABLES if table.name not in self._held)

    def reset(self) -> None:
        """Start over after a failure, with nothing held."""
        self._engine.close()
        self._held.clear()
        remove_unpublished(self._folder)
        self._engine = _engine(self._folder)

    def close(self) -> None:
        """Let go of DuckDB."""
        self._engine.close()


def _engine(folder: Path) -> duckdb.DuckDBPyConnection:
    # One thread, no compression: the file is small, and threads and tries at compression take 15 of 30 ms.
    made = engine(folder, threads=1, memory="512MB")
    made.execute("set force_compression = 'uncompressed'")
    return made


def _statements(files: Mapping[str, Sequence[Path]]) -> Iterable[str]:
    for table in CATALOG_TABLES:
        name = identifier(table.name)
        yield create_table(table)
        yield f"insert into next.main.{name} from memory.main.{name}"
    yield from create_views(files)


def load(folder: Path) -> dict[str, list[Row]] | None:
    """The rows of a published catalogue by table, timestamps in microseconds; None where there is none yet.

    Raises:
        VersionError: a newer version wrote it.
        FolderError: it is no catalogue of ours, or cannot be read.
    """
    path = folder / CATALOGUE
    if not path.exists():
        return None
    try:
        with closing(attached(path)) as connection:
            _check_version(connection, path)
            # A table that an older version did not know yet is empty.
            there = {name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()}
            return {table.name: _read(connection, table) if table.name in there else [] for table in CATALOG_TABLES}
    except duckdb.Error as error:
        raise FolderError(f"{path}: cannot be read as a store: {error}") from error


def attached(path: Path) -> duckdb.DuckDBPyConnection:
    """A connection to a catalogue, read-only, as it is on disk now.

    `duckdb.connect(path)` would give the database of an older connection of this process, where there is one:
    DuckDB keeps one for each path, and does not see that the file was replaced.
    """
    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False})
    try:
        connection.execute(f"attach {quoted(str(path))} as store (read_only); use store")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    found: Any = connection.execute("select version from store_info").fetchone()
    version = int(found[0]) if found else 0
    if version > STORE_VERSION:
        raise VersionError(
            f"{path}: the store has version {version}, this sidestep reads up to {STORE_VERSION}; "
            "nothing was changed; upgrade sidestep, or choose another folder with --dir"
        )


def _read(connection: duckdb.DuckDBPyConnection, table: Table) -> list[Row]:
    columns = [column.name for column in table.columns]
    # A store that was written before a column came to be reads as if it were empty there.
    there = {row[0] for row in connection.execute(f"describe {identifier(table.name)}").fetchall()}
    selected = ", ".join(
        "null"
        if column.name not in there
        else f"epoch_us({identifier(column.name)})"
        if column.type == "TIMESTAMP"
        else identifier(column.name)
        for column in table.columns
    )
    found: list[tuple[Any, ...]] = connection.execute(f"select {selected} from {identifier(table.name)}").fetchall()  # noqa: S608
    return [dict(zip(columns, row, strict=True)) for row in found]
