"""The layout of TensorBoard's custom scalars page: one chart for each group of tags.

A group is the first two parts of a tag, and its chart takes every tag that begins so. A layout thus changes
only when a group appears, not with each tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from sidestep_collector.sinks import summaries
from sidestep_collector.sinks.protos import protos

# Of tensorboard/plugins/custom_scalar/metadata.py.
_TAG: Final = "custom_scalars__config__"
_PLUGIN: Final = "custom_scalars"

#: A page with more charts helps nobody, and a run whose tags are numbered must not grow its file.
CHARTS_MAX: Final = 200
_WITHOUT_GROUP: Final = "other"


def groups_of(tags: Iterable[str]) -> list[str]:
    """The groups of tags, in the order they appear."""
    return list(dict.fromkeys("/".join(tag.split("/", 2)[:2]) for tag in tags))


def layout(groups: Iterable[str]) -> Any:
    """The value that holds the layout of these groups."""
    page = protos().Layout()
    categories: dict[str, Any] = {}
    for group in sorted(groups)[:CHARTS_MAX]:
        title = group.split("/", 1)[0] if "/" in group else _WITHOUT_GROUP
        if title not in categories:
            categories[title] = page.category.add(title=title)
        chart = categories[title].chart.add(title=group)
        chart.multiline.tag.append(f"^{re.escape(group)}(/|$)")
    return summaries.with_metadata(_TAG, _PLUGIN, b"", summaries.strings([page.SerializeToString()], []))
