"""The store: what was received, kept so that anyone can read it while it is written.

`Store` is the writing end (one a data folder), `connect` the reading end. Only this room and the commands
that query it touch DuckDB; it knows the data in flight (`blocks`) and no other stage.
"""

from sidestep_collector.store.local import Store
from sidestep_collector.store.reading import connect
from sidestep_collector.store.records import KnownRun, KnownStream

__all__ = ["KnownRun", "KnownStream", "Store", "connect"]
