"""What a training is fed: the batch's numbers, its fingerprint, labels and padding, and the sketch of all samples."""

from __future__ import annotations

import math
import struct
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.journal_reader import read_records, read_scalars, read_tags
from support.watched import batch, offline, small_net, take_step
from torch import nn

import sidestep
from sidestep.probes import data, sketch

__all__ = ["offline"]

MASK = (1 << 64) - 1


def plain_mix(number: int) -> int:
    """MurmurHash3's fmix64, as published."""
    number &= MASK
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        number = (number ^ (number >> 33)) * factor & MASK
    return number ^ (number >> 33)


def shipped(folder: Any, kind: str = "tensor") -> dict[tuple[str, float], tuple[Any, ...]]:
    """Tensors of integers by tag and epoch, or bytes of edges and counts of histograms."""
    records = [record for record in read_records(folder) if record.kind == kind]
    if kind == "tensor":
        return {(r.fields[0], r.epoch): struct.unpack(f"<{len(r.fields[3]) // 8}q", r.fields[3]) for r in records}
    return {(r.fields[1], r.epoch): r.fields[2:] for r in records}


# --- the input ---------------------------------------------------------------------------------------------------


def test_mean_spread_and_fingerprint_of_a_batch(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"data": 1}, **offline)
    for step in (0, 7, 8, 7):
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    whole = batch(8).double()
    numbers = [float(whole.mean()), float(whole.std(correction=0)), float(whole.abs().max())]
    for tag, number in zip(data.TAGS, numbers, strict=True):
        assert read_scalars(offline["dir"], tag)[2] == pytest.approx(number, rel=1e-5), tag
    prints = [read_scalars(offline["dir"], tag) for tag in data.PRINT_TAGS]
    assert [entry[1] for entry in prints] == [entry[3] for entry in prints] != [entry[2] for entry in prints]


def test_a_fingerprint_knows_the_order_of_a_batch_and_fits_into_float32() -> None:
    rows = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batches = (rows, rows.flip(0), rows.roll(1, 0), rows * 1.01, rows[:32], rows.double(), rows.half())
    prints = [tuple(sketch.fingerprint(sketch.row_sums(each)).tolist()) for each in batches]
    assert len(set(prints)) == len(batches)
    assert all(part == int(part) and 0 <= part < 1 << 24 for pair in prints for part in pair)


@pytest.mark.parametrize("source", ["mask", "padding"])
def test_padding_and_lengths(source: str) -> None:
    tokens = torch.tensor([[5, 6, 7, 0], [5, 0, 0, 0]])
    named = {"attention_mask": (tokens != 0).long()} if source == "mask" else {}
    probe = data.DataProbe(padding=0 if source == "padding" else None)
    probe.called((tokens,), named)
    assert probe._found[data.LENGTH_TAGS].tolist() == pytest.approx([0.5, 2.0, 3.0])


# --- labels ------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([-100, 0, 1, 2, 900]), min_size=1, max_size=60))
def test_entropy_of_labels_is_that_of_their_shares(labels: list[int]) -> None:
    entropy, classes = data.measure_labels(torch.tensor(labels), -100).tolist()
    times = Counter(label for label in labels if label != -100)
    total = sum(times.values())
    assert classes == pytest.approx(len(times), abs=1e-4)
    assert entropy == pytest.approx(-sum(n / total * math.log(n / total) for n in times.values()), abs=1e-5)


def test_labels_of_an_epoch_are_counted_by_split(offline: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"data": True}, **offline)
    for _ in run.epoch((1, 2)):
        model.train()
        for _ in range(2):
            F.cross_entropy(model(batch(0)), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            F.cross_entropy(model(batch(1)), torch.tensor([0, 1, 1, 1, -100, 1, 1, 1]))
    run.finish(timeout=0)
    found = shipped(offline["dir"], "figure")
    for epoch in (1, 2):
        edges, counts = found["data/classes_train", epoch]
        assert struct.unpack("<4d", edges) == (-0.5, 0.5, 1.5, 2.5)
        assert struct.unpack("<3d", counts) == (6, 4, 6)
        assert struct.unpack("<2d", found["data/classes_val", epoch][1]) == (1, 6)


def test_of_many_classes_neighbours_share_a_bin(offline: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"data": True}, **offline)
    F.cross_entropy(model(batch(0)), torch.tensor([0, 1, 2, 3, 3, 5, 2999, 2998])).backward()
    optimizer.step()
    run.finish(timeout=0)
    ((edges, counts),) = shipped(offline["dir"], "figure").values()
    counts = struct.unpack("<1000d", counts)
    assert (counts[0], counts[1], counts[999], sum(counts)) == (3, 3, 2, 8)
    assert struct.unpack("<1001d", edges)[:2] == (-0.5, 2.5)


# --- the sketch --------------------------------------------------------------------------------------------------


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_hashes_are_mixed_as_published(number: int) -> None:
    assert sketch.mixed(torch.tensor([number])).item() & MASK == plain_mix(number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_equal_samples_have_equal_hashes_in_every_batch(dtype: torch.dtype) -> None:
    rows = torch.arange(7 * 40).view(7, 5, 8).to(dtype) if dtype != torch.bool else torch.rand(7, 5, 8) > 0.5
    whole = sketch.row_sums(rows)
    assert len(whole.unique()) == 7
    assert torch.equal(whole[2:5].flip(0), sketch.row_sums(rows[2:5].flip(0)))
    assert torch.equal(whole, sketch.row_sums(rows.transpose(1, 2).contiguous().transpose(1, 2)))


def test_long_samples_are_looked_at_in_part() -> None:
    rows = torch.randn(3, 1000, 97)
    assert len(sketch.row_sums(rows).unique()) == 3


@pytest.mark.parametrize("batch_size", [1, 7, 64, 500])
def test_a_sketch_holds_the_smallest_hashes_of_all_different_samples(batch_size: int) -> None:
    samples = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    seen = torch.cat((samples, samples[:150]))
    kept = sketch.Sketch(40, torch.device("cpu"))
    for rows in seen.split(batch_size):
        kept.add(sketch.row_sums(rows))
        kept.least()
    expected = sorted(set(sketch.mixed(sketch.row_sums(samples)).tolist()))
    assert kept.least().tolist() == expected[:40]
    assert len(expected) == 300


def test_sketches_of_both_splits_are_shipped_with_each_epoch(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"data": {"sketch": 16}}, **offline)
    for epoch in run.epoch((1, 2)):
        for number in range(epoch):
            take_step(model, optimizer, number)
        model.eval()
        with torch.no_grad():
            model(batch(0)[:4])
        model.train()
    run.finish(timeout=0)
    first, second = (set(sketch.mixed(sketch.row_sums(batch(number))).tolist()) for number in (0, 1))
    found = {key: set(numbers) - {sketch.EMPTY} for key, numbers in shipped(offline["dir"]).items()}
    assert found["data/sketch_train", 1] == first
    assert found["data/sketch_train", 2] == first | second
    assert found["data/sketch_val", 1] == found["data/sketch_val", 2] < first
    assert len(found["data/sketch_val", 1]) == 4


def test_samples_that_a_script_shows_are_taken_instead_of_those_the_model_gets(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"data": True}, **offline)
    for number in range(3):
        run.batch(batch(5), split="train")  # before it is augmented
        take_step(model, optimizer, number)
    run.finish(timeout=0)
    (found,) = shipped(offline["dir"]).values()
    assert set(found) - {sketch.EMPTY} == set(sketch.mixed(sketch.row_sums(batch(5))).tolist())
    assert len(found) == 2048


def test_without_a_sketch_no_hook_stays_on_the_model(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(
        model, optimizer, probes={"data": {"sketch": 0}, "throughput": False, "validation": False}, **offline
    )
    assert not model._forward_pre_hooks
    run.batch(batch(0))
    take_step(model, optimizer, 0)
    run.finish(timeout=0)
    assert not any(tag.startswith("data/") for tag in read_tags(offline["dir"]))


def test_a_batch_shown_to_nobody_is_nothing(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, **offline)
    run.batch(batch(0), torch.zeros(8).long())
    run.batch("text", SimpleNamespace(), split="val")
    take_step(model, optimizer, 0)
    assert run.stats["refused"] == {}
