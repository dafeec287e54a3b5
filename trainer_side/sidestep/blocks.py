"""The blocks of a network: which parameter belongs to which, and what the blocks are called.

Blocks are found from the module tree, or given as prefixes of parameter names. Looks at names and modules only,
never at values.

Where nothing is given, each child of the model that has parameters is a block. A child that is a `ModuleList`,
`ModuleDict` or `Sequential` of several children with parameters is opened one level: `down_blocks.0` is the block
`down_block_0`. Parameters that lie on the model itself are the block `root`. `DataParallel`,
`DistributedDataParallel`, `torch.compile`, FSDP and checkpoint wrappers are looked through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from sidestep.errors import UsageError

ROOT: Final = "root"
OTHER: Final = "other"

#: A module under one of these names is a wrapper's inside, wherever it lies in the tree.
_WRAPPED: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_CONTAINERS: Final = (nn.ModuleList, nn.ModuleDict, nn.Sequential)

#: What has no local part, and no hooks of its own into torch.
_PLAIN: Final = (Tensor, nn.Parameter)

Given = Sequence[str] | Mapping[str, str | Sequence[str]]


class Blocks:
    """Puts each parameter of a model into exactly one block.

    Args:
        model: the model, wrapped or not.
        given: prefixes of parameter names, or names of blocks with their prefix or prefixes; the longest prefix
            that fits decides, and what fits none belongs to "other". None finds blocks in the module tree.

    Attributes:
        names: names of the blocks, in the order of the model; "other" last.

    Raises:
        UsageError: a prefix that no parameter has.
    """

    def __init__(self, model: nn.Module, given: Given | None = None) -> None:
        self._model = unwrapped(model)
        self._prefixes = _found(self._model) if given is None else _named_prefixes(given)
        names = [name for name, _ in named_parameters(self._model)]
        if given is not None:
            _check(self._prefixes, names)
        blocks = dict.fromkeys(block for name in names if (block := self._block_of(name)) != OTHER)
        self.names = (*blocks, OTHER)
        self._number = {name: number for number, name in enumerate(self.names)}
        self._place: dict[Tensor, int] = {}

    def place(self, parameters: Sequence[Tensor]) -> list[int]:
        """Number of each parameter's block in `names`; parameters the model got since are looked for."""
        if any(parameter not in self._place for parameter in parameters):
            named = named_parameters(self._model)
            other = self._number[OTHER]
            self._place = {parameter: self._number.get(self._block_of(name), other) for name, parameter in named}
            for parameter in parameters:
                self._place.setdefault(parameter, other)
        return [self._place[parameter] for parameter in parameters]

    def _block_of(self, name: str) -> str:
        prefix = name
        while prefix not in self._prefixes:
            prefix, dot, _ = prefix.rpartition(".")
            if not dot:
                return self._prefixes.get("", OTHER)
        return self._prefixes[prefix]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DataParallel, DistributedDataParallel, torch.compile, FSDP and checkpoint wrappers."""
    while True:
        inner = next((child for name, child in model.named_children() if name in _WRAPPED), None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters by name, wrappers left out of the names; a shared one once, under its first name."""
    return [(_clean(name), parameter) for name, parameter in model.named_parameters()]


def block_name(prefix: str) -> str:
    """What the block of a prefix is called.

    Dots become `_`, and a number behind a plural takes its `s`: `down_blocks.0` is `down_block_0`,
    `encoder.layers.3` is `encoder_layer_3`. A name ends in a plural `s` where it ends in `s` but not in `ss`. A
    number that comes first is a `layer`: `0` is `layer_0`.
    """
    parts: list[str] = []
    for part in prefix.split("."):
        if part.isdecimal():
            owner = parts.pop() if parts else "layer"
            singular = owner[:-1] if owner.endswith("s") and not owner.endswith("ss") and len(owner) > 1 else owner
            parts.append(singular)
        parts.append(part)
    return _free("_".join(parts))


def _found(model: nn.Module) -> dict[str, str]:
    prefixes = {"": ROOT}
    for name, child in model.named_children():
        prefixes[name] = block_name(name)
        inside = unwrapped(child)
        if isinstance(inside, _CONTAINERS):
            opened = [inner for inner, module in inside.named_children() if _has_parameters(module)]
            if len(opened) > 1:
                prefixes |= {f"{name}.{inner}": block_name(f"{name}.{inner}") for inner in opened}
    return prefixes


def _named_prefixes(given: Given) -> dict[str, str]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Mapping):
        return {_clean(prefix.rstrip(".")): block_name(prefix.rstrip(".")) for prefix in given}
    return {
        _clean(prefix.rstrip(".")): _free(name)
        for name, prefixes in given.items()
        for prefix in ([prefixes] if isinstance(prefixes, str) else prefixes)
    }


def _check(prefixes: Mapping[str, str], names: Sequence[str]) -> None:
    for prefix in prefixes:
        if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
            known = ", ".join(dict.fromkeys(name.split(".", 1)[0] for name in names))
            raise UsageError(f"blocks: no parameter of the model lies under {prefix!r}; at its top are: {known}")


def _free(name: str) -> str:
    # A part of a tag: without a slash, and not the tag of another quantity.
    name = name.replace("/", "_")
    return f"{name}_block" if name in _taken() else name


@cache
def _taken() -> frozenset[str]:
    """Last parts of tags that stand beside tags of blocks: `global_norm` beside `train/gradients/<block>`."""
    from sidestep_schemas.catalog import METRICS  # noqa: PLC0415 - milliseconds, and not every process has blocks

    tags = [metric.tag.rpartition("/") for metric in METRICS]
    folders = {folder for folder, _, name in tags if name == "<block>"}
    return frozenset(name for folder, _, name in tags if folder in folders)


def _clean(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def local(tensor: Any) -> Tensor:
    """What of a tensor lies in this process (a DTensor's shard), as real numbers, without history."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def seen(tensor: Any) -> Tensor:
    """As `local`, for reading without gradients: a plain tensor is handed back as it is, 0.5 us sooner."""
    return tensor if type(tensor) in _PLAIN and not tensor.is_complex() else local(tensor)
