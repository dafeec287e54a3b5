"""YAML as plain data, with the line that each part of it stands on.

A path to a part is the keys and indices that lead to it: `("metrics", "train/loss_fm", "unit")`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import yaml

#: Written in C where the wheel has it: ten times faster.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: More parts than any profile has; aliases of aliases grow without bound.
_PARTS_MAX: Final = 50_000

Path = tuple[str | int, ...]


@dataclass(slots=True)
class Document:
    """What a text says.

    Attributes:
        data: mappings, lists and scalars.
        lines: for each path its line, from 1.
        faults: (line, what) where it is no YAML, or says a thing twice.
    """

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict[Path, int])
    faults: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def line(self, path: Path) -> int:
        """The line of a part, or of the nearest one around it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read(text: str) -> Document:
    """Read a text; never raises, what is wrong with it stands in `faults`."""
    document = Document()
    loader = _LOADER(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            document.data = _Reader(loader, document).value(node, ())
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or str(error) or "nested too deep"
        document.faults.append((mark.line + 1 if mark is not None else 1, f"no YAML: {what}"))
    finally:
        loader.dispose()
    return document


class _Reader:
    """Turns nodes into data."""

    def __init__(self, loader: Any, document: Document) -> None:
        self._loader = loader
        self._document = document

    def value(self, node: Any, path: Path) -> Any:
        lines = self._document.lines
        if len(lines) > _PARTS_MAX:
            raise ValueError(f"more than {_PARTS_MAX} parts")
        lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._loader.construct_object(node)

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in found:
                self._document.faults.append((line, f"{key!r} stands here a second time"))
                continue
            self._document.lines[(*path, key)] = line
            found[key] = self.value(value_node, (*path, key))
        return found
