"""Attention before its softmax: the largest logit, and how many keys a query attends to. Seen in sampled steps alone.

While the model's first call of a sampled step lasts, and not longer, `F.scaled_dot_product_attention`, `torch.softmax`
and `Tensor.softmax` are wrapped (`F.softmax`, `nn.Softmax` and `nn.MultiheadAttention` call one of them). Of the first
the logits are computed once more, from few queries; of a softmax over the last dimension they are what goes in. A call
belongs to the module in whose `forward` it is made; only those count whose name or class has "att" in it. At most
`QUERIES` queries of `ENTRIES` entries of the batch are looked at, evenly spread, and never more than `ELEMENTS` logits.

In a model that is compiled, in full or in part, nothing is wrapped: its graphs would be made anew. Nothing is seen of
attention that is neither of these functions (flex attention, kernels of other packages).
"""

from __future__ import annotations

import inspect
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import Tensor, nn

from sidestep.probes.listening import FirstCall
from sidestep.probes.protocol import Watched
from sidestep.tracing import is_plain

TAGS: Final = (
    "train/attention/<module>/max_logit",
    "train/attention/<module>/entropy",
    "train/attention/<module>/entropy_share",
    "train/attention/<module>/entropy_share_min",
)
#: Queries, entries of a batch and logits that are looked at in one call: 16 MB in float32.
QUERIES: Final = 64
ENTRIES: Final = 2
ELEMENTS: Final = 1 << 22

#: A logit is that of a masked key where it is no larger: scripts add -10,000, the least number of a type, or -inf.
_MASKED: Final = -9e3
_FRAMES: Final = 12
_NAMED: Final = re.compile("att", re.IGNORECASE)


class _Place(NamedTuple):
    owner: Any
    name: str
    look: Callable[..., Tensor | None]  # module and the call's arguments to logits


class AttentionProbe(FirstCall):
    """Logits and entropy of attention.

    Args:
        every: when it samples.
        modules: at most so many are looked at.
    """

    name: ClassVar[str] = "attention"
    tags: ClassVar[tuple[str, ...]] = TAGS
    of_each_part: ClassVar[bool] = True
    every: int | str | None = 500

    def __init__(self, *, every: int | str | None = None, modules: int = 64) -> None:
        super().__init__(every=every)
        self._most = modules
        self._names: dict[int, str] = {}
        self._order: list[str] = []
        self._chosen: set[str] = set()
        self._seen: set[str] = set()
        self._restore: list[Callable[[], None]] = []
        self._is_looking = False

    def attach(self, watched: Watched) -> None:
        """Find the modules that may attend to something."""
        super().attach(watched)
        self._names = attentive(watched.inner)

    def begin(self, step: int) -> None:
        """Hang hooks on the model, where it has attention that can be seen."""
        self.forget()
        if self._names and not is_compiled(self.watched.model):
            super().begin(step)

    def called(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Wrap the functions."""
        places = (
            _Place(F, "scaled_dot_product_attention", dot_products),
            _Place(torch, "softmax", softmax_input),
            _Place(Tensor, "softmax", softmax_input),
        )
        for place in places:
            self._wrap(place, threading.get_ident())

    def returned(self, output: Any) -> None:  # noqa: ARG002
        """Take the wrapping off; of more modules than are to be looked at, others are next time."""
        self._unwrap()
        self._chosen = set(_evenly(self._order, self._most))

    def forget(self) -> None:
        """Take the hooks and the wrapping away."""
        super().forget()
        self._unwrap()
        self._seen = set()

    def _unwrap(self) -> None:
        restore, self._restore = self._restore, []
        for call in restore:
            call()

    def _wrap(self, place: _Place, thread: int) -> None:
        owner, name, look = place
        original = getattr(owner, name)
        was_its_own = name in vars(owner)
        note = self.hook(self._note)

        def attention(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() == thread and is_plain():
                note(look, arguments, named)
            return original(*arguments, **named)

        def restore() -> None:
            if vars(owner).get(name) is not attention:
                return  # somebody wrapped it once more
            if was_its_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

        setattr(owner, name, attention)
        self._restore.append(restore)

    def _note(self, look: Callable[..., Tensor | None], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        module = _caller()
        name = self._names.get(id(module))
        if name is None or name in self._seen:
            return
        with torch.no_grad(), torch.autocast(self.watched.device.type, enabled=False):
            logits = look(module, *arguments, **named)
            if logits is None:
                return
            if name not in self._order:
                self._order.append(name)
            if name in self._chosen or (not self._chosen and len(self._seen) < self._most):
                self._seen.add(name)
                self.keep(tuple(tag.replace("<module>", name) for tag in TAGS), measure(logits))


def attentive(model: nn.Module) -> dict[int, str]:
    """Names of modules that may attend to something, by their id."""
    named = ((name or "model", module) for name, module in model.named_modules())
    return {id(module): name for name, module in named if _NAMED.search(f"{name} {type(module).__name__}")}


def is_compiled(model: nn.Module) -> bool:
    """Whether a module of it is compiled: `torch.compile(module)`, `module.compile()`, a `forward` of its own."""
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def softmax_input(module: nn.Module, given: Any = None, dim: Any = None, *_: Any, **named: Any) -> Tensor | None:
    """Some of the logits that go into a softmax over keys, float32 of shape (entries, heads, queries, keys); None where
    they are not of shape (batch, heads, queries, keys) or (batch * heads, queries, keys)."""
    given, dim = named.get("input", given), named.get("dim", dim)
    if not _is_plain(given) or given.ndim not in (3, 4) or dim not in (-1, given.ndim - 1):
        return None
    if given.ndim == 3:
        heads = getattr(module, "num_heads", 1)
        given = given.unflatten(0, (-1, heads if isinstance(heads, int) and len(given) % heads == 0 else 1))
    return given[:ENTRIES, :, _rows(given.shape)].float()


def dot_products(  # noqa: PLR0917 - the arguments of torch's function
    module: nn.Module,  # noqa: ARG001 - as `softmax_input`
    query: Any,
    key: Any,
    value: Any = None,  # noqa: ARG001
    attn_mask: Any = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor | None:
    """The logits q·k scale of some queries of a `scaled_dot_product_attention`, with its masks applied: float32 of
    shape (entries, heads, queries, keys). Queries and keys have shape (batch, heads, L, E) or (batch, L, E)."""
    if not _is_plain(query) or not _is_plain(key) or query.ndim not in (3, 4) or query.ndim != key.ndim:
        return None
    if attn_mask is not None and not _is_plain(attn_mask):
        return None
    if query.ndim == 3:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        attn_mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
    shape = torch.Size((*query.shape[:3], key.shape[2]))
    rows = _rows(shape)
    some, keys = query[:ENTRIES, :, rows].float(), key[:ENTRIES].float()
    if keys.shape[1] != some.shape[1]:  # several query heads share one of keys
        keys = keys.repeat_interleave(some.shape[1] // keys.shape[1], 1)
    logits = some @ keys.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        positions = torch.arange(shape[2], device=logits.device)[rows].unsqueeze(1)
        logits.masked_fill_(torch.arange(shape[3], device=logits.device) > positions, -math.inf)
    if attn_mask is not None:
        mask = attn_mask.expand(shape)[:ENTRIES, :, rows]
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits


def measure(logits: Tensor) -> Tensor:
    """Numbers of logits of shape (entries, heads, queries, keys), in the order of `TAGS`: float32 of shape (4,).

    With p the softmax over the n keys that a query sees, its entropy is H = -Σ p ln p, in nats, and as a share
    H / ln n. Both are means over heads and queries with two keys at least; the last is the least mean share of a head.
    """
    is_masked = logits <= _MASKED
    share = torch.softmax(logits.masked_fill(is_masked, -math.inf), dim=-1)
    keys = (~is_masked).sum(-1)
    has_choice = keys > 1
    entropy = torch.where(has_choice, torch.special.entr(share).sum(-1), 0.0)
    shares = torch.where(has_choice, entropy / keys.clamp(min=2).log(), 0.0)
    by_head = shares.sum((0, 2)) / has_choice.sum((0, 2))
    largest = logits.masked_fill(is_masked, -math.inf).amax()
    return torch.stack((largest, entropy.sum() / has_choice.sum(), by_head.mean(), by_head.amin()))


def _evenly(names: Sequence[str], most: int) -> Sequence[str]:
    if len(names) <= most:
        return names
    return [names[round(number * (len(names) - 1) / max(1, most - 1))] for number in range(most)]


def _rows(shape: torch.Size) -> slice:
    entries, heads, queries, keys = min(ENTRIES, shape[0]), *shape[1:]
    most = max(1, min(QUERIES, ELEMENTS // max(1, entries * heads * keys)))
    stride = -(-queries // most)
    return slice((queries - 1) % stride, None, stride)  # the last one, which sees most, among them


def _is_plain(given: Any) -> bool:
    return type(given) is Tensor and given.layout == torch.strided and not given.is_nested and given.numel() > 0


def _caller() -> nn.Module | None:
    """The module whose method is running: the nearest caller's `self` that is one, a softmax of torch's excepted."""
    frame = inspect.currentframe()
    for _ in range(_FRAMES):
        if frame is None:
            return None
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not isinstance(owner, nn.Softmax):
            return owner
        frame = frame.f_back
    return None
