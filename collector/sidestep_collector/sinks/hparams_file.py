"""The sink that writes a run's settings as YAML beside its event files: `tensorboard/hparams.yaml`.

The file has what rank 0 said last, at its start or later; a run without settings has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from sidestep_collector.blocks import Batch, Event, Item, Stream, Text
from sidestep_collector.sinks.hparams import parsed
from sidestep_collector.sinks.replacing import replace
from sidestep_schemas import layout

FILE_NAME: Final = "hparams.yaml"
_FOLDER: Final = "tensorboard"


class HparamsFile:
    """Writes the settings of runs.

    Args:
        root: the data folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, batch: Batch) -> None:
        """See `FileSink`."""
        said: dict[tuple[str, str], tuple[int, Mapping[str, Any]]] = {}
        for item in batch.items:
            settings = _settings(item)
            if settings:
                stream: Stream = item.at.stream
                place = stream.project, stream.run
                if place not in said or said[place][0] <= stream.attempt:
                    said[place] = stream.attempt, settings
        for (project, run), (_, settings) in said.items():
            text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=120)
            replace(layout.run_dir(self._root, project, run) / _FOLDER / FILE_NAME, text.encode())


def _settings(item: Item) -> Mapping[str, Any] | None:
    if item.at.stream.rank:
        return None
    if isinstance(item, Text) and item.what == "config":
        return parsed(item.text)
    if isinstance(item, Event) and item.event == "start":
        config = item.details.get("config")
        found = parsed(config) if isinstance(config, str) else config
        return found if isinstance(found, dict) else None
    return None
