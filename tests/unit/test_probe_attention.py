"""Attention before its softmax: what is seen of each kind, that it is right, and that nothing stays behind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.journal_reader import read_scalars, read_tags
from support.watched import offline
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sidestep
from sidestep.probes import attention

__all__ = ["offline"]

WIDTH, HEADS, LENGTH = 16, 4, 10
ORIGINALS = (F.scaled_dot_product_attention, torch.softmax)


class SelfAttention(nn.Module):
    """Causal attention, as nanoGPT has it: fused, or by hand."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def heads(self, x: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).split(WIDTH, -1)]

    def logits(self, x: Tensor) -> Tensor:
        query, key, _ = self.heads(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(~mask, -math.inf)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fused":
            out = F.scaled_dot_product_attention(*self.heads(x), is_causal=True)
        else:
            logits = self.logits(x)
            share = {"function": lambda: F.softmax(logits, dim=-1), "method": lambda: logits.softmax(-1)}[self.kind]()
            out = share @ self.heads(x)[2]
        return x + out.transpose(1, 2).flatten(2)


class Net(nn.Module):
    def __init__(self, kind: str = "fused", layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"attn": SelfAttention(kind)}) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer["attn"](x)
        return x


def net(kind: str = "fused", layers: int = 2) -> Net:
    torch.manual_seed(0)
    return Net(kind, layers)


def sequences(step: int, length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(step))


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, number: int, call: Callable[[Tensor], Any] | None = None
) -> None:
    optimizer.zero_grad()
    (call or model)(sequences(number)).square().mean().backward()
    optimizer.step()


def plain(logits: Tensor) -> list[float]:
    """Largest logit, mean entropy, its share of ln n, the least of a head: of each head and query, one by one."""
    entropies: list[float] = []
    heads: list[float] = []
    for head in range(logits.shape[1]):
        shares: list[float] = []
        for row in logits[:, head].reshape(-1, logits.shape[-1]):
            seen = row[row > -1e9].double()
            if len(seen) > 1:
                p = seen.softmax(0)
                entropies.append(float(-(p * p.log()).sum()))
                shares.append(entropies[-1] / math.log(len(seen)))
        heads.append(sum(shares) / len(shares))
    largest = float(logits[logits > -1e9].max())
    return [largest, sum(entropies) / len(entropies), sum(heads) / len(heads), min(heads)]


@pytest.mark.parametrize("kind", ["fused", "function", "method"])
def test_logits_and_entropy_are_those_of_a_plain_computation(offline: dict[str, Any], kind: str) -> None:
    model = net(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"attention": 2}, **offline)
    expected: dict[str, dict[int, float]] = {}
    for number in range(3):
        with torch.no_grad():
            x = sequences(number)
            for index, layer in enumerate(model.layers):
                found = plain(layer["attn"].logits(x))
                for tag, value in zip(attention.TAGS, found, strict=True):
                    if number in (1, 2):
                        expected.setdefault(tag.replace("<module>", f"layers.{index}.attn"), {})[number] = value
                x = layer["attn"](x)
        step(model, optimizer, number)
    run.finish(timeout=0)
    for tag, values in expected.items():
        assert read_scalars(offline["dir"], tag) == pytest.approx(values, rel=1e-4), tag


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_torchs_own_attention_is_seen(offline: dict[str, Any], need_weights: bool, is_causal: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if is_causal else None
            return self.mixer(x, x, x, attn_mask=mask, need_weights=need_weights)[0]

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"attention": 1}, **offline)
    for number in range(2):
        with torch.no_grad():
            parts = F.linear(sequences(number), model.mixer.in_proj_weight, model.mixer.in_proj_bias).split(WIDTH, -1)
            query, key, _ = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
            logits = query @ key.mT / math.sqrt(WIDTH // HEADS)
            if is_causal:
                logits = logits.masked_fill(~torch.ones(LENGTH, LENGTH).tril().bool(), -math.inf)
        expected = plain(logits)
        step(model, optimizer, number)
    run.finish(timeout=0)
    for tag, value in zip(attention.TAGS, expected, strict=True):
        assert read_scalars(offline["dir"], tag.replace("<module>", "mixer")) == pytest.approx({1: value}, rel=1e-4)


@pytest.mark.parametrize("mask", ["bool", "float", "none"])
def test_masks_and_shared_key_heads_are_kept_to(mask: str) -> None:
    query, key = torch.randn(3, 4, 6, 8), torch.randn(3, 2, 9, 8)
    allowed = torch.rand(3, 1, 6, 9) > 0.3
    given = {"bool": allowed, "float": torch.where(allowed, 0.5, torch.finfo(torch.float32).min), "none": None}[mask]
    found = attention.dot_products(nn.Identity(), query, key, attn_mask=given, scale=0.3, enable_gqa=True)
    expected = query @ key.repeat_interleave(2, 1).mT * 0.3
    if mask == "bool":
        expected = expected.masked_fill(~allowed, -math.inf)
    elif mask == "float":
        expected = expected + given
    assert found is not None
    assert found.shape == (2, 4, 6, 9)
    torch.testing.assert_close(found, expected[:2])
    numbers = attention.measure(found).tolist()
    assert numbers == pytest.approx(plain(expected[:2]), rel=1e-4)


def test_attention_to_all_alike_has_the_whole_entropy_and_to_one_none() -> None:
    alike, one = torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8)
    one[..., 3] = 200.0
    assert attention.measure(alike).tolist() == pytest.approx([0.0, math.log(8), 1.0, 1.0])
    assert attention.measure(one).tolist() == pytest.approx([200.0, 0.0, 0.0, 0.0])
    assert attention.measure(torch.cat((alike, one), 1)).tolist()[2:] == pytest.approx([0.5, 0.0])


def test_of_long_sequences_few_queries_are_looked_at_the_last_among_them() -> None:
    query, key = torch.randn(5, 2, 1000, 4), torch.randn(5, 2, 1000, 4)
    found = attention.dot_products(nn.Identity(), query, key, is_causal=True)
    assert found is not None
    assert found.shape[:2] == (2, 2)
    assert 32 <= found.shape[2] <= attention.QUERIES
    seen = (found > -math.inf).sum(-1)[0, 0]
    assert seen[-1] == 1000
    assert len(seen.unique()) == len(seen)
    many = attention.softmax_input(nn.Identity(), torch.zeros(1, 64, 8, 100_000), dim=-1)
    assert many is not None
    assert many.numel() <= max(attention.ELEMENTS, 64 * 100_000)


def test_other_softmaxes_are_not_taken_for_attention() -> None:
    for given, dim in ((torch.zeros(8, 10), -1), (torch.zeros(2, 3, 4, 5), 1), (torch.zeros(2, 3, 4, 5), None)):
        assert attention.softmax_input(nn.Identity(), given, dim=dim) is None
    assert attention.attentive(nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1))) == {}


def test_functions_are_wrapped_within_the_forward_pass_of_a_sampled_step_alone(offline: dict[str, Any]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped: list[bool] = []
    model.layers[1].register_forward_pre_hook(lambda *_: None)
    model.layers[0]["attn"].qkv.register_forward_hook(
        lambda *_: wrapped.append(F.scaled_dot_product_attention is not ORIGINALS[0] and "softmax" in vars(Tensor))
    )
    run = sidestep.watch(model, optimizer, probes={"attention": 3}, **offline)
    for number in range(5):
        step(model, optimizer, number)
        assert (F.scaled_dot_product_attention, torch.softmax) == ORIGINALS
        assert "softmax" not in vars(Tensor)
    run.finish(timeout=0)
    assert wrapped == [False, True, False, True, False]


def test_a_forward_pass_that_raises_is_over_with_the_next_one(offline: dict[str, Any]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"attention": 1}, **offline)
    step(model, optimizer, 0)
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.randn(2, 3, WIDTH + 1))
    model.eval()
    with torch.no_grad():
        model(sequences(0))
    model.train()
    assert (F.scaled_dot_product_attention, torch.softmax) == ORIGINALS
    assert "softmax" not in vars(Tensor)
    step(model, optimizer, 1)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "train/attention/layers.1.attn/entropy")) == [1]


def test_of_many_modules_others_are_looked_at_evenly(offline: dict[str, Any]) -> None:
    model = net(layers=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"attention": {"every": 1, "modules": 3}}, **offline)
    for number in range(3):
        step(model, optimizer, number)
    run.finish(timeout=0)
    seen = {index: read_scalars(offline["dir"], f"train/attention/layers.{index}.attn/entropy") for index in range(9)}
    assert {index: list(values) for index, values in seen.items() if values} == {
        0: [1, 2],
        1: [1],
        2: [1],
        4: [2],
        8: [2],
    }


def test_a_model_without_attention_gets_no_hook(offline: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(-1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"attention": 1, "activations": False, "time": False}, **offline)
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    assert not model._forward_hooks
    run.finish(timeout=0)


@pytest.mark.parametrize("part", ["whole", "layer", "in place"])
def test_of_a_compiled_model_nothing_is_wrapped(offline: dict[str, Any], part: str) -> None:
    model: Any = net()
    if part == "whole":
        model = torch.compile(model, backend="eager")
    elif part == "layer":
        model.layers[0]["attn"] = torch.compile(model.layers[0]["attn"], backend="eager")
    else:
        model.layers[0]["attn"].compile(backend="eager")
    assert attention.is_compiled(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"attention": 1, "time": False}, **offline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(3):
            step(model, optimizer, number)
    run.finish(timeout=0)
    tags = read_tags(offline["dir"])
    assert "train/gradients/global_norm" in tags
    assert not any(tag.startswith("train/attention") for tag in tags)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_with_checkpointing_attention_is_seen_and_training_is_the_same(
    offline: dict[str, Any], use_reentrant: bool
) -> None:
    def train(*, watched: bool) -> list[Tensor]:
        model = net("function")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        class Checked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, x: Tensor) -> Tensor:
                return checkpoint(self.inner, x.requires_grad_(), use_reentrant=use_reentrant)

        whole = Checked()
        if watched:
            sidestep.watch(whole, optimizer, every=1, probes={"attention": 1, "logits": 1, "data": 1}, **offline)
        for number in range(4):
            step(whole, optimizer, number)
        return list(model.parameters())

    pairs = zip(train(watched=False), train(watched=True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert list(read_scalars(offline["dir"], "train/attention/inner.layers.0.attn/entropy")) == [1, 2, 3]
