"""Probes of what a model is given and puts out leave a training as it is, bit for bit, and wait for nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.journal_reader import read_tags
from support.watched import offline
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import sidestep
from sidestep.probes import registry

__all__ = ["offline"]

MINE = ("activations", "attention", "data", "logits")
#: What reads a number of a tensor's, and on a device waits for it.
WAITING = {
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::equal",
}


class Classifier(nn.Module):
    """Tokens to one of five classes: embedding, attention with dropout, a part in place, two heads of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.encode = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU6(inplace=True), nn.Dropout(0.3), nn.Linear(16, 5))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.encode(
            self.embed(tokens), src_key_padding_mask=None if attention_mask is None else attention_mask == 0
        )
        return {"logits": self.head(hidden.mean(1))}


def examples(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(1, 20, (8, 7), generator=generator)
    mask = torch.ones_like(tokens)
    mask[:3, 5:] = 0
    return tokens, mask, torch.randint(0, 5, (8,), generator=generator)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    for number in range(2):  # gradients are accumulated over two
        tokens, mask, labels = examples(2 * step + number)
        logits = model(tokens, attention_mask=mask)["logits"]
        (F.cross_entropy(logits, labels, label_smoothing=0.1) / 2).backward()
    optimizer.step()
    optimizer.zero_grad()


def train(arguments: dict[str, Any] | None, steps: int = 6) -> tuple[list[Tensor], list[Tensor], Tensor]:
    torch.manual_seed(1)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = None if arguments is None else sidestep.watch(model, optimizer, every=1, **arguments)
    found: list[Tensor] = []
    for epoch in range(2):
        if run is not None:
            run.epoch(epoch)
        model.train()
        for step in range(steps // 2):
            take_step(model, optimizer, epoch * steps + step)
        model.eval()
        with torch.no_grad():
            tokens, mask, labels = examples(1000)
            if run is not None:
                run.batch(tokens, labels, split="val")
            found.append(F.cross_entropy(model(tokens, attention_mask=mask)["logits"], labels))
    if run is not None:
        run.finish(timeout=0)
    return list(model.state_dict().values()), found, torch.get_rng_state()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_training_and_its_validations_are_the_same_bit_for_bit(offline: dict[str, Any]) -> None:
    plain = train(None)
    watched = train({"probes": dict.fromkeys(MINE, 1), **offline})
    for expected, found in zip(plain[:2], watched[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(plain[2], watched[2])
    seen = {tag.rsplit("/", 1)[-1] for tag in read_tags(offline["dir"])}
    assert {"agreement", "gradient_norm", "kurtosis", "max_logit", "label_entropy", "padding_share"} <= seen


def train_encoder(arguments: dict[str, Any] | None) -> tuple[list[Tensor], list[bool]]:
    """Outputs of validations, and whether torch took its shorter way through the layers for them."""
    torch.manual_seed(1)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = None if arguments is None else sidestep.watch(model, optimizer, every=1, **arguments)
    outputs: list[Tensor] = []
    ways: list[bool] = []
    padding = torch.zeros(8, 7, dtype=torch.bool)
    padding[:3, 5:] = True
    for step in range(4):
        x = torch.randn(8, 7, 16, generator=torch.Generator().manual_seed(step))
        model.train()
        model(x, src_key_padding_mask=padding).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
            outputs.append(model(x, src_key_padding_mask=padding))
        ways.append("aten::_transformer_encoder_layer_fwd" in {event.key for event in seen.key_averages()})
    if run is not None:
        run.finish(timeout=0)
    return outputs, ways


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_model_that_is_torchs_encoder_validates_the_same_bit_for_bit(offline: dict[str, Any]) -> None:
    probes = {
        **dict.fromkeys((*MINE, "time", "backward", "noise"), 1),
        "features": {"modules": ["layers.0.norm1"], "every": 1},
    }
    plain, watched = train_encoder(None), train_encoder({"probes": probes, **offline})
    assert plain[1] == watched[1] == [True] * 4
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    assert "kurtosis" in {tag.rsplit("/", 1)[-1] for tag in read_tags(offline["dir"])}


def test_nothing_is_read_back_from_a_tensor(offline: dict[str, Any]) -> None:
    counts: list[dict[str, int]] = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = Classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if watched:
            probes = {**dict.fromkeys(registry.DEFAULTS, False), **dict.fromkeys(MINE, 1)}
            sidestep.watch(model, optimizer, every=1, probes=probes, **offline)
        take_step(model, optimizer, 0)
        take_step(model, optimizer, 1)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            take_step(model, optimizer, 2)
        counts.append({event.key: event.count for event in seen.key_averages()})
    plain, found = counts
    assert found["aten::scatter_add_"] > plain.get("aten::scatter_add_", 0)  # the probes did their work
    assert {name: found.get(name, 0) for name in WAITING} == {name: plain.get(name, 0) for name in WAITING}


def test_sampling_compiles_a_watched_model_no_more_often_than_the_probes_of_time_do(offline: dict[str, Any]) -> None:
    counts: list[int] = []
    for names in (("throughput", "time"), MINE):
        torch._dynamo.reset()
        compiled: list[torch.fx.GraphModule] = []

        def backend(graph: torch.fx.GraphModule, _inputs: object, compiled: Any = compiled) -> Any:
            compiled.append(graph)
            return graph.forward

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        folder = {**offline, "dir": offline["dir"] / names[0]}
        probes = {**dict.fromkeys(registry.DEFAULTS, False), **dict.fromkeys(names, 2)}
        run = sidestep.watch(model, optimizer, every=2, probes=probes, **folder)
        whole = torch.compile(model, backend=backend)
        for step in range(8):
            F.cross_entropy(whole(torch.ones(4, 6) * step), torch.tensor([0, 1, 2, 0])).backward()
            optimizer.step()
            optimizer.zero_grad()
        run.finish(timeout=0)
        counts.append(len(compiled))
    assert counts[1] <= counts[0]
