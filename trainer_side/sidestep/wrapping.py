"""Functions of others, wrapped while a run lives, and put back afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

#: Makes a wrapper of a function.
Around = Callable[[Callable[..., Any]], Callable[..., Any]]


class Wrappings:
    """What was wrapped, so that it can be put back."""

    def __init__(self) -> None:
        self._wrapped: list[tuple[Any, str, Any, Any]] = []

    def wrap(
        self,
        places: Sequence[Any],
        name: str,
        around: Callable[[Callable[..., Any]], Callable[..., Any]],
        *,
        again: bool = False,
    ) -> None:
        """Replace a function by one that wraps it; one that is wrapped already, or is not there, is left alone.

        Args:
            places: modules or classes that have it; the first one's is taken, and replaced in all that have the same.
            name: its name there.
            around: makes the wrapper from the function.
            again: wrap also what is wrapped already; for a short while, that of another in it.
        """
        original = vars(places[0]).get(name) if places else None
        if original is None or (hasattr(original, "__sidestep__") and not again):
            return
        wrapper: Any = functools.wraps(original)(around(original))
        wrapper.__sidestep__ = True
        # `torch.jit.script` compiles a function from its source and what it refers to: have it take the original.
        wrapper.__dict__ |= {"__script_if_tracing_wrapper": True, "__original_fn": original}
        for place in places:
            if vars(place).get(name) is original:
                setattr(place, name, wrapper)
                self._wrapped.append((place, name, wrapper, original))

    def remove(self) -> None:
        """Put back what was wrapped, unless somebody else has wrapped it since."""
        for place, name, wrapper, original in self._wrapped:
            if vars(place).get(name) is wrapper:
                setattr(place, name, original)
        self._wrapped = []
