"""Which passes over loaders are epochs, and which are validations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from sidestep.auto import loaders
from sidestep.auto.datasets import shared_dataset
from sidestep.auto.loaders import Loaders, Pass
from sidestep.auto.patching import Faults


class FakeRun:
    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.recorded: list[tuple[float, float]] = []
        self.marks: list[tuple[str, dict[str, Any]]] = []

    def epoch(self, number: int) -> None:
        self.epochs.append(number)

    def record(self, tags: tuple[str, ...], values: tuple[float, ...], *, epoch: float, tier: str) -> None:
        assert (tags, tier) == (("perf/data_loading_frac", "train/num_batches"), "epoch")
        self.recorded.append((epoch, values[1]))

    def mark(self, event: str, **details: Any) -> None:
        self.marks.append((event, details))


class Script:
    """Iterates as a script would, with the loaders told as the wrappers tell them."""

    def __init__(self) -> None:
        self.run: Any = FakeRun()
        self.ended: list[Pass] = []
        self.loaders = Loaders(Faults(), lambda: True, self.ended.append)

    def go(self, loader: DataLoader[Any], *, steps: bool, batches: int | None = None) -> None:
        iterator = iter(loader)
        self.loaders._begin(loader, iterator, 0.0)
        for number, _ in enumerate(iterator):
            self.loaders._note(iterator, 0.0, is_over=False)
            if steps:
                self.loaders.begin_step(self.run)
            if number + 1 == batches:
                return
        self.loaders._note(iterator, 0.0, is_over=True)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTEP_STRICT", "1")


def loader_of(samples: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(samples, 1)), batch_size=4)


def test_each_pass_that_is_trained_on_is_an_epoch() -> None:
    script, train, val = Script(), loader_of(12), loader_of(8)
    for _ in range(3):
        script.go(train, steps=True)
        with torch.no_grad():
            script.go(val, steps=False)
    assert script.run.epochs == [1, 2, 3]
    assert [one.loader for one in script.ended] == [val] * 3
    script.loaders.flush()
    assert script.run.recorded == [(1, 3), (2, 3), (3, 3)]
    assert script.run.marks == []


def test_a_pass_that_is_left_early_is_an_epoch_too() -> None:
    script, train = Script(), loader_of(12)
    for _ in range(2):
        script.go(train, steps=True, batches=1)
    assert script.run.epochs == [1, 2]
    assert script.run.recorded == [(1, 1)]


def test_a_loader_made_anew_for_each_epoch_goes_on() -> None:
    script = Script()
    for _ in range(3):
        script.go(loader_of(12), steps=True)
    assert script.run.epochs == [1, 2, 3]


def test_a_validation_in_the_middle_of_an_epoch_begins_none() -> None:
    script, train, val = Script(), loader_of(12), loader_of(8)
    iterator = iter(train)
    script.loaders._begin(train, iterator, 0.0)
    for _ in iterator:
        script.loaders._note(iterator, 0.0, is_over=False)
        script.loaders.begin_step(script.run)
        script.go(val, steps=False)
        script.loaders.begin_step(script.run)  # on the batch from before
    assert script.run.epochs == [1]


def test_a_second_loader_beside_the_first_begins_no_epoch() -> None:
    script, labelled, unlabelled = Script(), loader_of(8), loader_of(20)
    script.go(labelled, steps=True)
    script.go(unlabelled, steps=True)
    assert script.run.epochs == [1]


def test_a_pass_without_gradients_over_the_training_data_is_known_as_such() -> None:
    script, train = Script(), loader_of(12)
    script.go(train, steps=True)
    with torch.no_grad():
        script.go(train, steps=False)
    assert script.loaders.last is not None
    assert script.loaders.is_trained_on(script.loaders.last)
    assert len(script.ended) == 1


def test_the_length_of_a_stream_is_not_asked_for() -> None:
    class Stream(IterableDataset[int]):
        def __len__(self) -> int:
            raise AssertionError("torch would warn about it later")

        def __iter__(self) -> Any:
            return iter(range(4))

    assert Pass(1, DataLoader(Stream())).kind == ("Stream", None)


def test_the_share_of_waiting_is_of_the_time_until_the_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(loaders, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    one = Pass(1, loader_of(4))
    assert one.waiting_share is None
    for until, seconds, share in ((11.0, 0.0, 0.0), (12.0, 1.0, 0.5), (14.0, 2.0, 0.75)):
        now[0] = until
        one.wait(seconds)
        assert one.waiting_share == share


class Images(Dataset[Any]):
    """Ten images with a transform of one's own."""

    def __init__(self, transform: Any = None) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return self.transform(torch.ones(3)) if self.transform else torch.ones(3)


class Flip:
    """Turns half of what it is given around."""

    def __call__(self, image: Any) -> Any:
        return image.flip(0) if torch.rand(()) < 0.5 else image


class Composed:
    """Several, one after the other."""

    def __init__(self, *transforms: Any) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


def halve(image: Any) -> Any:
    return image / 2


def split_of(dataset: Dataset[Any], other: Dataset[Any] | None = None) -> tuple[DataLoader[Any], DataLoader[Any]]:
    val = Subset(dataset if other is None else other, range(6, 10))
    return DataLoader(Subset(dataset, range(6)), batch_size=2), DataLoader(ConcatDataset([val]), batch_size=2)


@pytest.mark.parametrize(("transform", "is_random"), [(Flip(), True), (Composed(halve, Flip()), True), (halve, False)])
def test_splits_of_one_dataset_share_its_transform_and_whether_it_is_random_is_told(
    transform: Any, is_random: bool
) -> None:
    found = shared_dataset(*split_of(Images(transform)))
    assert found is not None
    assert (found.kind, found.is_random) == ("Images", is_random)
    assert ("draws random numbers" in found.why) == is_random


def test_datasets_of_their_own_and_those_without_a_transform_share_nothing() -> None:
    assert shared_dataset(*split_of(Images(Flip()), Images(halve))) is None
    assert shared_dataset(*split_of(Images())) is None


def test_two_samplers_over_one_dataset_are_a_split_and_two_loaders_over_all_of_it_are_not() -> None:
    images = Images(Flip())
    parts = [DataLoader(images, sampler=SubsetRandomSampler(entries)) for entries in ([0, 1, 2], [3, 4])]
    assert shared_dataset(parts[0], parts[1]) is not None
    assert shared_dataset(DataLoader(images, shuffle=True), DataLoader(images)) is None


def test_a_shared_dataset_is_marked_once_at_the_end_of_a_validation() -> None:
    script = Script()
    train, val = split_of(Images(Flip()))
    for _ in range(2):
        script.go(train, steps=True)
        with torch.no_grad():
            script.go(val, steps=False)
    [(event, details)] = script.run.marks
    assert event == "shared_dataset"
    assert details["is_random"]
    assert "one Images object" in details["why"]
