"""The contract of a probe: when it is called, what its failure does, and the example of the page about it."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import SmallNet, batch, offline, small_net, take_step

import sidestep
from sidestep.errors import SidestepWarning
from sidestep.probes import Part, Probe, Watched, registry

__all__ = ["offline"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "probes.md"


class Diary(Probe):
    """Writes down what it is told."""

    name = "diary"

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self.told: list[str] = []

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        self.told.append("attach")

    def begin(self, step: int) -> None:
        self.told.append(f"begin {step}")

    def gradients(self, part: Part) -> None:
        self.told.append("gradients")

    def before_step(self, part: Part) -> None:
        self.told.append("before")

    def after_step(self, part: Part) -> None:
        self.told.append("after")

    def report(self, step: int) -> None:
        assert not torch.is_grad_enabled()
        self.told.append(f"report {step}")

    def detach(self) -> None:
        self.told.append("detach")

    @property
    def reported(self) -> list[int]:
        return [int(entry.split()[1]) for entry in self.told if entry.startswith("report")]


def watch_with(
    probe: Probe, place: dict[str, Any], **more: Any
) -> tuple[SmallNet, torch.optim.Optimizer, sidestep.Run]:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return model, optimizer, sidestep.watch(model, optimizer, probes=[probe], **more, **place)


def test_a_probe_is_told_of_a_sampled_step_in_order(offline: dict[str, Any]) -> None:
    diary = Diary(every=2)
    model, optimizer, run = watch_with(diary, offline)
    for step in range(3):
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    first = ["attach", "begin 0", "gradients", "before", "after", "report 0"]
    assert diary.told == [*first, "begin 2", "gradients", "before", "after", "report 2", "detach"]


def test_gradients_of_a_closure_are_told_after_the_step(offline: dict[str, Any]) -> None:
    diary = Diary()
    model, optimizer, _ = watch_with(diary, offline)

    def closure() -> torch.Tensor:
        loss = model(batch(0)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert diary.told[2:] == ["before", "gradients", "after", "report 0"]


def test_a_run_that_goes_on_from_a_checkpoint_samples_the_steps_it_would_have(offline: dict[str, Any]) -> None:
    diary = Diary(every=10)
    model, optimizer, run = watch_with(diary, offline)
    for _ in range(8):
        run.next_step()
    for step in range(4):
        take_step(model, optimizer, step)
    assert diary.reported == [10]


def test_once_an_epoch_and_parts_of_it(offline: dict[str, Any]) -> None:
    once, quarter = Diary(every="epoch"), Diary(every="0.25 epoch")
    quarter.name = "other"  # type: ignore[misc]
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes=[once, quarter], **offline)
    for _ in run.epoch(range(1, 4)):
        for step in range(8):
            take_step(model, optimizer, step)
    assert once.reported == [0, 1, 9, 17]
    assert quarter.reported == [0, 1, 9, 11, 13, 15, 17, 19, 21, 23]


def test_several_epochs(offline: dict[str, Any]) -> None:
    diary = Diary(every="2 epochs")
    model, optimizer, run = watch_with(diary, offline)
    for _ in run.epoch(range(1, 5)):
        for step in range(3):
            take_step(model, optimizer, step)
    assert diary.reported == [0, 4, 10]


def test_once_a_validation(offline: dict[str, Any]) -> None:
    diary = Diary(every="validation")
    model, optimizer, _ = watch_with(diary, offline)
    for step in range(6):
        take_step(model, optimizer, step)
        if step % 3 == 1:
            model.eval()
            model(batch(step))
            model(batch(step))
            model.train()
    assert diary.reported == [3]  # it begins before a step, so that it is step 3 and not 2; that of step 4 waits


def test_a_hook_that_raises_never_reaches_the_training(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")

    class Clumsy(Diary):
        def begin(self, step: int) -> None:
            def stumble(*_: object) -> None:
                raise ZeroDivisionError("oh")

            self.handle = self.watched.model.register_forward_hook(self.hook(stumble))

        def detach(self) -> None:
            self.handle.remove()

    model, optimizer, run = watch_with(Clumsy(), offline, every=1)
    with pytest.warns(SidestepWarning, match="'diary' is switched off: a hook raised ZeroDivisionError"):
        take_step(model, optimizer)
    assert not [hook for hook in model._forward_hooks.values() if "Clumsy" in repr(getattr(hook, "_call", ""))]
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert run.stats["refused"] == {"probe": 1}
    assert list(read_scalars(offline["dir"], "train/lr")) == [0, 1]


def test_a_model_that_is_copied_under_hooks_carries_none_that_do_anything(offline: dict[str, Any]) -> None:
    calls: list[int] = []

    class Hooked(Probe):
        name = "hooked"

        def begin(self, step: int) -> None:
            self.watched.model.register_forward_hook(self.hook(lambda *_: calls.append(1)))

    model, _, _ = watch_with(Hooked(), offline)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(batch(0))
    assert not calls
    model(batch(0))
    assert calls == [1]


def test_without_probes_there_is_no_hook_on_the_model(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, probes=dict.fromkeys(registry.DEFAULTS, False), **offline)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert run.step == 0
    assert read_tags(offline["dir"]) == set()


def test_settings_choose_and_change_probes(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probes = {"updates": False, "gradients": 2, "optimizer": {"every": 3}, "mine": Diary()}
    run = sidestep.watch(model, optimizer, every=1, probes=probes, **offline)
    for step in range(4):
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "train/gradients/global_norm")) == [0, 2]
    assert list(read_scalars(offline["dir"], "train/lr")) == [0, 3]
    assert not {tag for tag in read_tags(offline["dir"]) if tag.startswith("train/updates/")}
    assert probes["mine"].reported == [0, 1, 2, 3]  # type: ignore[union-attr]


def test_a_probe_of_others_is_found_by_its_entry_point(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        name = "diary"

        @staticmethod
        def load() -> type[Probe]:
            return Diary

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry] if group == "sidestep.probes" else [])
    (made,) = [probe for probe in registry.chosen({"diary": {"every": 7}}) if probe.name == "diary"]
    assert isinstance(made, Diary)
    assert made.every == 7


def test_the_example_of_the_page_records_what_it_says(offline: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Temperature" in code]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {}
    exec(example, names)
    model, optimizer, run = watch_with(names["Temperature"](every=1), offline)
    before = model.temperature.item()
    take_step(model, optimizer)
    assert model.temperature.item() != before
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/temperature") == pytest.approx({0: model.temperature.item()})


def test_every_probe_is_on_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(registry.BUILT_IN)
    assert tuple(name for name, default in rows if default == "yes") == registry.DEFAULTS
