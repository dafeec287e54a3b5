"""The reading end: how anyone opens a store, while it is written or after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from sidestep_collector.store.catalogue import attached
from sidestep_collector.store.folder import CATALOGUE, store_dir
from sidestep_collector.store.views import create_views
from sidestep_schemas.errors import FolderError


def connect(root: Path) -> duckdb.DuckDBPyConnection:
    """Open a store for reading: as of its last commit, and untouched by later ones.

    Raises:
        FolderError: there is no store, or it cannot be read.
    """
    path = store_dir(root) / CATALOGUE
    if not path.is_file():
        raise FolderError(f"{root}: there is no store here yet; name the data folder with --dir or SIDESTEP_DIR")
    try:
        connection = attached(path)
        _follow(connection, root.absolute())
    except duckdb.Error as error:
        raise FolderError(f"{path}: cannot be read as a store: {error}") from error
    return connection


def _follow(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Where the folder was moved since the last commit, let views of this connection point to where it is now."""
    written: Any = connection.execute("select root from store_info").fetchone()
    if written and written[0] == str(root):
        return
    files: dict[str, list[Path]] = {}
    parts: list[tuple[str, str]] = connection.execute("select table_name, part from parts order by part").fetchall()
    for table, part in parts:
        files.setdefault(table, []).append(store_dir(root) / part)
    for statement in create_views(files, kind="temp view"):
        connection.execute(statement)
