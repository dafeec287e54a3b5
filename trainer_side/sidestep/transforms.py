"""`sidestep check-transforms`: whether training and validation data are what they are meant to be.

Two datasets that wrap one object share its transform: then validation is augmented, or training is not. This looks at
the two as they are, and at what they give: nothing is assumed of them but `len` and indexing.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from sidestep_schemas.errors import UsageError

#: Samples that are looked at of each dataset.
SAMPLES: Final = 64
_TRANSFORMS: Final = ("transform", "transforms", "target_transform")
_CLASSES: Final = ("class_to_idx", "classes")

Severity = Literal["ok", "info", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: how it stands, what was seen, and what to change where something is wrong."""

    name: str
    severity: Severity
    seen: str
    change: str = ""


def load(reference: str) -> Any:
    """A dataset by `module:name` or `path.py:name`: a dataset, a loader of one, or a function that gives either.

    Raises:
        UsageError: there is no such thing; or it is no dataset.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{reference!r}: write module:name or path.py:name, name being a dataset or what gives one")
    found: Any = _module(place, reference)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{reference!r}: {place} has no {part!r}")
        found = getattr(found, part)
    if callable(found) and not hasattr(found, "__getitem__"):
        found = found()
    dataset = getattr(found, "dataset", None) if hasattr(found, "batch_sampler") else found
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UsageError(f"{reference!r} is {type(found).__name__}: a dataset has a length and can be indexed")
    return dataset


def check(train: Any, val: Any) -> list[Check]:
    """Look at two datasets; what is worst comes last."""
    checks: list[Check] = [
        _same_base(train, val),
        _same_transform(train, val),
        _repeats(train, val),
        _ranges(train, val),
        _overlap(train, val),
        _labels(train, val),
    ]
    order = ("ok", "info", "warning", "critical")
    return sorted(checks, key=lambda one: order.index(one.severity))


def _module(place: str, reference: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as Python itself has it
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"{reference!r}: there is no module {error.name!r} here") from error
    if not Path(place).is_file():
        raise UsageError(f"{reference!r}: there is no file {place}")
    sys.path.insert(0, str(Path(place).resolve().parent))
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None, "a file that ends in .py has a loader"
    known = sys.modules.get(spec.name)
    if known is not None and getattr(known, "__file__", None) == spec.origin:
        return known  # both datasets come out of one module, as they do in the training
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bases(dataset: Any) -> Iterator[Any]:
    """The datasets inside of subsets and concatenations."""
    inner = getattr(dataset, "dataset", None)
    parts = getattr(dataset, "datasets", None)
    if inner is not None:
        yield from _bases(inner)
    elif isinstance(parts, Sequence):
        for part in parts:
            yield from _bases(part)
    else:
        yield dataset


def _transforms(dataset: Any) -> list[Any]:
    return [
        found for base in _bases(dataset) for name in _TRANSFORMS if (found := getattr(base, name, None)) is not None
    ]


def _same_base(train: Any, val: Any) -> Check:
    shared = [base for base in _bases(train) for other in _bases(val) if base is other]
    if not shared:
        return Check("one object", "ok", "training and validation are objects of their own")
    transformed = next((base for base in shared if _transforms(base)), None)
    kind = type(shared[0] if transformed is None else transformed).__name__
    change = (
        f"make two {kind} objects, each with its own transform, and take Subset(first, train_indices) and "
        "Subset(second, val_indices) of one split of the indices"
    )
    if transformed is None:
        takes_one = any(hasattr(base, name) for base in shared for name in _TRANSFORMS)
        seen = f"both wrap one {kind}; it has no transform, so nothing is shared that matters"
        later = "before you give it a transform, which both would have, "
        return Check("one object", "info", seen, later + change if takes_one else "")
    seen = f"both wrap one {kind}: they share its transform, whatever is set on one of them is set on both"
    return Check("one object", "critical", seen, change)


def _same_transform(train: Any, val: Any) -> Check:
    same = [one for one in _transforms(train) for other in _transforms(val) if one is other]
    if not same:
        return Check("one transform", "ok", "no transform object is in both")
    return Check(
        "one transform",
        "warning",
        f"one {type(same[0]).__name__} object is the transform of both",
        "give validation a transform without augmentation",
    )


def _repeats(train: Any, val: Any) -> Check:
    """Whether a sample asked for twice is the same: augmentation changes it."""
    varies = {name: _varies(dataset) for name, dataset in (("training", train), ("validation", val))}
    if varies["validation"]:
        return Check(
            "augmentation",
            "critical" if not varies["training"] else "warning",
            "a validation sample asked for twice differs: validation is augmented",
            "validate without random transforms: resize, centre crop and normalise alone",
        )
    if varies["training"]:
        return Check("augmentation", "ok", "training samples vary from one time to the next, validation samples do not")
    return Check("augmentation", "info", "neither training nor validation samples vary: there is no augmentation")


def _ranges(train: Any, val: Any) -> Check:
    """Whether the numbers of both are of one scale: a transform that normalises one of them only shows here."""
    first, second = _moments(train), _moments(val)
    if first is None or second is None:
        return Check("scale", "info", "samples have no numbers that can be compared")
    seen = f"training mean {first[0]:.3g}, sd {first[1]:.3g}; validation mean {second[0]:.3g}, sd {second[1]:.3g}"
    width = max(first[1], second[1], 1e-12)
    ratio = (first[1] + 1e-12) / (second[1] + 1e-12)
    if abs(first[0] - second[0]) > 0.5 * width or not 0.5 < ratio < 2:
        return Check("scale", "critical", seen, "normalise both alike: one of them lacks it, or has it twice")
    return Check("scale", "ok", seen)


def _overlap(train: Any, val: Any) -> Check:
    """Whether a sample is in both, by its index in one dataset."""
    first, second = ({(id(base), index) for base, index in _indices(dataset)} for dataset in (train, val))
    both = len(first & second)
    if both:
        seen = f"{both} of {len(second)} validation samples are in training too"
        return Check(
            "overlap", "critical", seen, "split the indices once: torch.utils.data.random_split, or a permutation"
        )
    return Check("overlap", "ok", "no sample is in both, as far as indices tell")


def _indices(dataset: Any) -> Iterator[tuple[Any, int]]:
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is None or indices is None:
        yield from ((dataset, index) for index in range(len(dataset)))
        return
    within = list(_indices(inner))
    yield from (within[int(index)] for index in indices)


def _labels(train: Any, val: Any) -> Check:
    for name in _CLASSES:
        first, second = (
            next((getattr(base, name) for base in _bases(one) if hasattr(base, name)), None) for one in (train, val)
        )
        if first is None or second is None:
            continue
        if _plain(first) != _plain(second):
            return Check(
                "classes",
                "critical",
                f"{name} differs: {_plain(first)!s:.120} in training, {_plain(second)!s:.120} in validation",
                "make the map from class to number once, from the training data, and hand it to both",
            )
        return Check("classes", "ok", f"{name} is the same for both ({len(first)} classes)")
    return Check("classes", "info", "neither says which classes it has")


def _plain(classes: Any) -> Any:
    return dict(classes) if isinstance(classes, Mapping) else list(classes)


def _varies(dataset: Any) -> bool:
    some = range(0, len(dataset), max(1, len(dataset) // 8))
    return any(_numbers(dataset[index]) != _numbers(dataset[index]) for index in islice(some, 8))


def _moments(dataset: Any) -> tuple[float, float] | None:
    stride = max(1, len(dataset) // SAMPLES)
    values = [value for index in islice(range(0, len(dataset), stride), SAMPLES) for value in _numbers(dataset[index])]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    mean = math.fsum(finite) / len(finite)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / len(finite))


def _numbers(sample: Any) -> list[float]:
    """At most some 4,000 numbers of a sample's input, evenly spread; of an image its pixels."""
    given: Any = sample[0] if isinstance(sample, (tuple, list)) and sample else sample
    if isinstance(given, Mapping):
        given = next(iter(given.values()), None)
    if hasattr(given, "getdata"):  # an image of Pillow
        import numpy as np  # noqa: PLC0415 - whoever has images has numpy

        given = np.asarray(given)
    flatten: Callable[[], Any] | None = getattr(given, "flatten", None)
    if flatten is None:
        return [float(given)] if isinstance(given, (int, float)) else []
    flat = flatten()
    return [float(value) for value in flat[:: max(1, len(flat) // 4000)].tolist()]
