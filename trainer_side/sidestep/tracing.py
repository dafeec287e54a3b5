"""What torch is about to do with a call of a module: compute, trace, compile, repeat. Looks at torch's own state."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.jit import _recursive as scripting

_CORE: Final[Any] = torch._C  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - torch has no public names
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")


def is_plain() -> bool:
    """Whether tensors are computed as they come: nobody traces, transforms, counts or keeps what is called."""
    return (
        _CORE._get_tracing_state() is None  # noqa: SLF001
        and not _CORE._len_torch_dispatch_stack()  # noqa: SLF001
        and not _CORE._are_functorch_transforms_active()  # noqa: SLF001
    )


def is_in_backward() -> bool:
    """Whether a backward pass is under way in this thread: a forward pass in it repeats one (checkpointing)."""
    return _CORE._current_graph_task_id() != -1  # noqa: SLF001


def hide_from_script(kinds: tuple[type, ...]) -> None:
    """Have `torch.jit.script` find no hooks of these types on modules: it would compile them, and fail.

    Args:
        kinds: types of our hooks.
    """
    original = scripting.create_script_module
    if hasattr(original, "__sidestep__"):
        return

    def create_script_module(nn_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _without(nn_module, kinds):
            return original(nn_module, *args, **kwargs)

    wrapper: Any = create_script_module
    wrapper.__sidestep__ = True
    scripting.create_script_module = wrapper


@contextmanager
def _without(model: nn.Module, kinds: tuple[type, ...]) -> Generator[None]:
    hidden: list[tuple[dict[int, Callable[..., Any]], dict[int, Callable[..., Any]]]] = []
    for module in model.modules():
        for name in _HOOKS:
            hooks = module.__dict__.get(name)
            if hooks and any(isinstance(hook, kinds) for hook in hooks.values()):
                hidden.append((hooks, dict(hooks)))
    try:
        for hooks, whole in hidden:
            for number in [number for number, hook in whole.items() if isinstance(hook, kinds)]:
                del hooks[number]
        yield
    finally:
        for hooks, whole in hidden:
            hooks.clear()
            hooks.update(whole)
