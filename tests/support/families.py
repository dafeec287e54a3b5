"""The example of a family: how it is trained, and what it must leave behind, in the store and in TensorBoard."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Final

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sidestep_collector.profiles import builtin
from sidestep_collector.profiles.vocabulary import regex
from support.place import Place, ended

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
#: An example may take as long, where many tests run at once: loading torch alone can take a minute there.
PATIENCE_SECONDS: Final = 170
#: How a script is started on several ranks.
TWO_RANKS: Final = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SETTINGS: Final = {"OMP_NUM_THREADS": "1", "SIDESTEP_COLLECTOR_FLUSH_SECONDS": "0.1"}
#: Tables that a quantity may lie in.
TABLES = {"points": "metric", "epochs": "metric", "images": "name", "histograms": "name"}


def imported(example: str, *names: str) -> list[ModuleType]:
    """Modules of an example, imported as its script imports them; other examples have modules of the same names."""
    folder = EXAMPLES / example
    own = [file.stem for file in folder.glob("*.py")]
    kept = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def started(place: Place, run: str, *command: str, **settings: str) -> subprocess.Popen[str]:
    """Begin a training below `sidestep run`: a script and its arguments."""
    below = ("-m", "sidestep", "run", "--id", run, "--", sys.executable)
    return place.start(sys.executable, *below, *command, **SETTINGS, **settings)


def trained(place: Place, run: str, *command: str) -> str:
    """Train to the end, with nothing lost; what was printed."""
    out = ended(started(place, run, *command), seconds=PATIENCE_SECONDS)
    assert "lost 0" in out
    return out


def stored_tags(place: Place, run: str) -> set[str]:
    """Every tag that the store has of a run, as number, epoch's number, image or histogram."""
    return {
        tag
        for table, column in TABLES.items()
        for (tag,) in place.rows(f"select distinct {column} from {table} where run = ?", run)
    }


def shown_tags(place: Place, run: str, *, project: str) -> set[str]:
    """Every tag that TensorBoard shows of a run's first attempt, rank 0."""
    events = EventAccumulator(str(place.tensorboard(run, project=project)), size_guidance={"tensors": 1})
    events.Reload()
    tags = events.Tags()
    return {tag for kind in ("scalars", "images", "histograms", "tensors") for tag in tags[kind]}


def missing_of(profile: str, tags: Iterable[str], *, but: Iterable[str] = ()) -> list[str]:
    """Tags of a profile (families once) that are not among `tags`; `but` names those that are not expected here."""
    seen = list(tags)
    wanted = [tag for tag in builtin(profile).metrics if tag not in set(but)]
    return [tag for tag in wanted if not any(re.fullmatch(regex(tag), one) for one in seen)]
