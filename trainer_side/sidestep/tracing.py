"""What torch is about to do with a call of a module: compute, trace, compile, repeat. Looks at torch's own state."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import nn, serialization
from torch.jit import _recursive as scripting

_CORE: Final[Any] = torch._C  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - torch has no public names
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")

_watched: list[weakref.ref[nn.Module]] = []


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


def hide_hooks(model: nn.Module, kinds: tuple[type, ...]) -> None:
    """Have `torch.jit.script` and `torch.save` find no hooks of these types on a model.

    The one would compile them, and fail. What the other writes could be read only where sidestep is, and not at all
    with `weights_only`.

    Args:
        model: a watched model.
        kinds: types of our hooks.
    """
    _watched[:] = [known for known in _watched if known() is not None]
    _watched.append(weakref.ref(model))
    _hide_in(scripting, "create_script_module", kinds, lambda given: [given])
    for name in ("_save", "_legacy_save"):
        _hide_in(serialization, name, kinds, lambda _: [known for each in _watched if (known := each()) is not None])


def _hide_in(owner: Any, name: str, kinds: tuple[type, ...], models: Callable[[Any], list[nn.Module]]) -> None:
    original = getattr(owner, name, None)
    if original is None or hasattr(original, "__sidestep__"):
        return

    @functools.wraps(original)
    def call(given: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for model in models(given):
                stack.enter_context(_without(model, kinds))
            return original(given, *args, **kwargs)

    wrapper: Any = call
    wrapper.__sidestep__ = True
    setattr(owner, name, wrapper)


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
