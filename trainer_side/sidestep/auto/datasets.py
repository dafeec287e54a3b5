"""Whether the data of training and of validation wrap one dataset object, and so share its transform.

Looks at what objects hold, never through a property or a `__getattr__` of theirs, and takes no sample: a transform
that draws random numbers would draw others afterwards. Whether one does is read from its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, Final, NamedTuple, cast

from torch.utils.data import DataLoader

_TRANSFORMS: Final = ("transform", "transforms", "target_transform")
#: Names of what draws random numbers: torchvision's and others' classes, and functions that a transform calls.
_RANDOM: Final = re.compile(
    r"_?(rand|Random|RandAugment|AutoAugment|TrivialAugment|AugMix|ColorJitter|ElasticTransform|MixUp|CutMix"
    r"|bernoulli|uniform|choices?$|shuffle|permutation|normal$)"
)
_CALLS: Final = ("__call__", "forward", "get_params", "make_params")
_DEPTH_MAX: Final = 6


class Shared(NamedTuple):
    """A dataset object that both wrap: its class, and whether its transform draws random numbers."""

    kind: str
    is_random: bool

    @property
    def why(self) -> str:
        """What is shared, in a sentence."""
        seen = ", which draws random numbers" if self.is_random else ""
        return (
            f"both loaders read one {self.kind} object, so validation images go through the training's transform{seen}"
        )


def shared_dataset(train: DataLoader[Any], val: DataLoader[Any]) -> Shared | None:
    """The dataset object with a transform that two loaders share; None where there is none.

    Two loaders over all of the very same dataset are no split of it: the second looks at the training data again.
    """
    if train.dataset is val.dataset and _takes_all(train) and _takes_all(val):
        return None
    others = {id(base) for base in _bases(val.dataset)}
    for base in _bases(train.dataset):
        if id(base) in others:
            found = [entry for name in _TRANSFORMS if (entry := _held(base).get(name)) is not None]
            own = _code_draws(getattr(type(base), "__getitem__", None))
            if found or own:
                return Shared(type(base).__name__, own or any(_draws(entry) for entry in found))
    return None


def _takes_all(loader: DataLoader[Any]) -> bool:
    try:
        return len(loader.sampler) == len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return True


def _held(thing: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", getattr(thing, "__dict__", None) or {})


def _bases(dataset: Any, depth: int = 0) -> Iterator[Any]:
    """The datasets inside of subsets and concatenations."""
    held = _held(dataset)
    inner, parts = held.get("dataset"), held.get("datasets")
    if depth < _DEPTH_MAX and inner is not None:
        yield from _bases(inner, depth + 1)
    elif depth < _DEPTH_MAX and isinstance(parts, Sequence):
        for part in cast("Sequence[Any]", parts):
            yield from _bases(part, depth + 1)
    else:
        yield dataset


def _draws(transform: Any, depth: int = 0) -> bool:
    """Whether a transform, or one inside of it, draws random numbers, as far as names tell."""
    held = _held(transform)
    chance = held.get("p")
    if _RANDOM.match(type(transform).__name__) or (isinstance(chance, float) and 0 < chance < 1):
        return True
    if _code_draws(transform) or any(_code_draws(getattr(type(transform), name, None)) for name in _CALLS):
        return True
    inner = held.get("transforms")
    parts = [*cast("Sequence[Any]", inner)] if isinstance(inner, Sequence) else []
    parts += [entry for entry in held.values() if callable(entry)]
    return depth < _DEPTH_MAX and any(_draws(part, depth + 1) for part in parts)


def _code_draws(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and any(_RANDOM.match(name) for name in _names(code))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
