"""The layout of TensorBoard's custom scalars page: the panels of the run's profile, then a chart for each group.

A group is the first two parts of a tag, and its chart takes every tag that begins so. A chart of a profile appears
once one of its tags did. A layout thus changes only when a group or a chart appears, not with each tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from sidestep_collector.profiles import Chart, Profile, Vocabulary
from sidestep_collector.profiles.vocabulary import regex
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


class Charts:
    """Which charts of profiles show a tag."""

    def __init__(self, profiles: Iterable[Profile], vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._of: dict[str, list[tuple[str, str]]] = {}
        for profile in profiles:
            for panel, charts in profile.panels.items():
                for chart in charts:
                    for tag in chart.reads:
                        self._of.setdefault(tag, []).append((panel, chart.title))

    def of(self, tags: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(panel, title) of each chart that shows one of these tags."""
        for tag in tags:
            yield from self._of.get(tag, ())
            match = self._vocabulary.find(tag)
            if match is not None and match.declared.metric.tag != tag:
                yield from self._of.get(match.declared.metric.tag, ())


def layout(profiles: Iterable[Profile], shown: Iterable[tuple[str, str]], groups: Iterable[str]) -> Any:
    """The value that holds a layout: of the profiles' charts those that are `shown`, the last profile's first."""
    page = protos().Layout()
    wanted = set(shown)
    for profile in reversed(list(profiles)):
        for panel, charts in profile.panels.items():
            present = [chart for chart in charts if (panel, chart.title) in wanted]
            if present:
                category = page.category.add(title=panel)
                for chart in present:
                    wanted.discard((panel, chart.title))
                    _draw(category.chart.add(title=chart.title), chart)
    categories: dict[str, Any] = {}
    for group in sorted(groups)[:CHARTS_MAX]:
        title = group.split("/", 1)[0] if "/" in group else _WITHOUT_GROUP
        if title not in categories:
            categories[title] = page.category.add(title=title)
        chart = categories[title].chart.add(title=group)
        chart.multiline.tag.append(f"^{re.escape(group)}(/|$)")
    return summaries.with_metadata(_TAG, _PLUGIN, b"", summaries.strings([page.SerializeToString()], []))


def _draw(drawn: Any, chart: Chart) -> None:
    if chart.kind == "margin":
        drawn.margin.series.add(value=chart.value, lower=chart.lower, upper=chart.upper)
    else:
        drawn.multiline.tag.extend(f"^{regex(tag)}$" for tag in chart.tags)
