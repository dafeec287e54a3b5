"""Every environment variable that means something to sidestep, but a collector's own (`SIDESTEP_COLLECTOR_...`)."""

from __future__ import annotations

from typing import Final, NamedTuple

PREFIX: Final = "SIDESTEP_"
COLLECTOR_PREFIX: Final = "SIDESTEP_COLLECTOR_"
#: Variables of the tests begin so.
TEST_PREFIX: Final = "SIDESTEP_TEST_"


class Variable(NamedTuple):
    """A variable: what holds without it, and what it says. `is_secret` ones are not shown."""

    default: str
    meaning: str
    is_secret: bool = False


VARIABLES: Final[dict[str, Variable]] = {
    "SIDESTEP_DIR": Variable("sidestep-data", "data folder"),
    "SIDESTEP_COLLECTOR": Variable("", "address of a collector; default that of the data folder"),
    "SIDESTEP_KEY": Variable("", "key file for a collector that asks for one", is_secret=True),
    "SIDESTEP_MODE": Variable("on", "on, offline or off"),
    "SIDESTEP_PROJECT": Variable("default", "project of runs"),
    "SIDESTEP_GROUP": Variable("", "group of runs"),
    "SIDESTEP_RUN_ID": Variable("", "id of the run; default a new one, or the job's"),
    "SIDESTEP_NAME": Variable("", "name of the run"),
    "SIDESTEP_PROFILE": Variable("", "family of metrics"),
    "SIDESTEP_AUTO": Variable("1", "0 captures no unchanged script"),
    "SIDESTEP_AUTO_EVERY": Variable("10", "steps between measurements of a captured script"),
    "SIDESTEP_SYSTEM_SECONDS": Variable("10", "seconds between samples of the machine; 0 takes none"),
    "SIDESTEP_STACKS_ON_HANG": Variable("0", "1 records all Python stacks when no step comes for long"),
    "SIDESTEP_JOURNAL_MB": Variable("2048", "megabytes that the journals of a run may leave on the disk of a host"),
    "SIDESTEP_SHARED_MEMORY": Variable("1", "0 writes the journal to disk at once, without shared memory before it"),
    "SIDESTEP_HANG_SECONDS": Variable("60", "seconds without a step that such a hang takes at least"),
    "SIDESTEP_STRICT": Variable("0", "1 raises where a value cannot be recorded"),
}


def unknown(names: list[str]) -> list[str]:
    """Those among the names of environment variables that look like ours and mean nothing."""
    ours = [name for name in names if name.startswith(PREFIX)]
    return sorted(
        name for name in ours if name not in VARIABLES and not name.startswith((COLLECTOR_PREFIX, TEST_PREFIX))
    )
