"""Real fits of Lightning: what `self.log` is given arrives, at its step and epoch, with the value Lightning has."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.journal_reader import read_events, read_records, read_scalars, read_tags
from support.place import Place
from support.watched import offline

import sidestep
from sidestep.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning.pytorch")
    from sidestep.lightning import SidestepCallback, SidestepLogger

__all__ = ["offline"]
pytestmark = pytest.mark.filterwarnings("ignore", "error::sidestep.errors.SidestepWarning")

BATCHES = 8


class Net(lightning.LightningModule):
    """Logs in all the ways there are, and keeps what it logged."""

    def __init__(self, width: int = 4, fail_at: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(3, width)
        self.head = torch.nn.Linear(width, 1)
        self.said: dict[str, list[float]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x)))

    def say(self, name: str, value: torch.Tensor) -> torch.Tensor:
        self.said.setdefault(name, []).append(float(value))
        return value

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if index == self.hparams.fail_at:
            raise RuntimeError("out of luck")
        loss = self(batch[0]).square().mean()
        self.log("loss", self.say("loss", loss))
        self.log("train_both", self.say("both", loss * 2), on_step=True, on_epoch=True)
        self.log("train_mean", self.say("mean", loss * 3), on_step=False, on_epoch=True)
        self.log("mine/kept", self.say("kept", loss * 4))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("late", self.say("late", torch.tensor(float(len(self.said["loss"])))))

    def on_train_epoch_end(self) -> None:
        self.log("at_end", self.say("at_end", torch.tensor(10.0 + self.current_epoch)))

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        loss = self(batch[0]).square().mean()
        self.log("val_loss", self.say("val_loss", loss))
        self.log("batch_loss", self.say("batch_loss", loss), on_step=True, on_epoch=False)

    def on_validation_epoch_end(self) -> None:
        self.log("val_end", self.say("val_end", torch.tensor(7.0)))

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("test_loss", self.say("test_loss", self(batch[0]).square().mean()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def loader(self, batches: int, seed: int) -> torch.utils.data.DataLoader[Any]:
        rows = torch.randn(4 * batches, 3, generator=torch.Generator().manual_seed(seed))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=4)

    def train_dataloader(self) -> Any:
        return self.loader(BATCHES, 0)

    def val_dataloader(self) -> Any:
        return self.loader(2, 1)

    def test_dataloader(self) -> Any:
        return self.loader(2, 2)


class Log(Net):
    """One value, over two validation loaders."""

    def validation_step(self, batch: list[torch.Tensor], index: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.say(f"val_{dataloader_idx}", self(batch[0]).square().mean()))

    def val_dataloader(self) -> Any:
        return [self.loader(2, 1), self.loader(2, 3)]


def trainer(folder: Path, **given: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults = {"max_epochs": 2, "logger": False, "accelerator": "cpu", "default_root_dir": folder / "lightning"}
    return lightning.Trainer(**{**quiet, **defaults, **given})


def fit(offline: dict[str, Any], module: Net | None = None, **given: Any) -> Net:
    module = module or Net()
    callbacks = [SidestepCallback(every=4, **offline), *given.pop("callbacks", [])]
    trainer(offline["dir"], callbacks=callbacks, **given).fit(module)
    return module


def at_steps(values: list[float]) -> dict[int, float]:
    return dict(enumerate(pytest.approx(value, rel=1e-6) for value in values))


def epochs_of(folder: Path, tag: str) -> dict[float, float]:
    return {
        record.epoch: record.values[tag]
        for record in read_records(folder)
        if record.tier == "epoch" and tag in (record.values or {})
    }


def test_each_logged_value_arrives_at_its_step_with_nothing_to_configure(offline: dict[str, Any]) -> None:
    said = fit(offline).said
    assert len(said["loss"]) == 2 * BATCHES
    assert read_scalars(offline["dir"], "train/loss") == at_steps(said["loss"])
    assert read_scalars(offline["dir"], "train/both_step") == at_steps(said["both"])
    assert read_scalars(offline["dir"], "mine/kept") == at_steps(said["kept"])


def test_a_value_logged_in_a_later_hook_of_the_module_belongs_to_its_own_batch(offline: dict[str, Any]) -> None:
    fit(offline)
    assert read_scalars(offline["dir"], "train/late") == {step: step + 1.0 for step in range(2 * BATCHES)}


def test_epoch_values_arrive_as_lightning_reduces_them(offline: dict[str, Any]) -> None:
    said = fit(offline).said
    for tag, values in (("train/mean", said["mean"]), ("train/both_epoch", said["both"])):
        means = {1.0: sum(values[:BATCHES]) / BATCHES, 2.0: sum(values[BATCHES:]) / BATCHES}
        assert epochs_of(offline["dir"], tag) == pytest.approx(means, rel=1e-5)
    assert epochs_of(offline["dir"], "train/at_end") == {1.0: 10.0, 2.0: 11.0}


def test_validations_arrive_whole_and_by_batch(offline: dict[str, Any]) -> None:
    said = fit(offline).said
    checked = said["val_loss"][2:]  # without the sanity check, which is no validation
    means = {1.0: sum(checked[:2]) / 2, 2.0: sum(checked[2:]) / 2}
    assert epochs_of(offline["dir"], "val/loss") == pytest.approx(means, rel=1e-5)
    assert epochs_of(offline["dir"], "val/end") == {1.0: 7.0, 2.0: 7.0}
    assert list(read_scalars(offline["dir"], "val/loss")) == [BATCHES - 1, 2 * BATCHES - 1]
    assert read_scalars(offline["dir"], "val/batch_loss") == at_steps(said["batch_loss"][2:])


def test_validation_within_an_epoch_stands_at_its_share_of_batches(offline: dict[str, Any]) -> None:
    fit(offline, max_epochs=2, val_check_interval=0.25)
    assert list(epochs_of(offline["dir"], "val/loss")) == [1.25, 1.5, 1.75, 1.0, 2.25, 2.5, 2.75, 2.0]
    assert list(read_scalars(offline["dir"], "val/loss")) == [1, 3, 5, 7, 9, 11, 13, 15]


def test_several_validation_loaders_stay_apart(offline: dict[str, Any]) -> None:
    said = fit(offline, Log(), max_epochs=1, num_sanity_val_steps=0).said
    for number in (0, 1):
        mean = sum(said[f"val_{number}"]) / 2
        assert epochs_of(offline["dir"], f"val/loss/dataloader_idx_{number}") == {1.0: pytest.approx(mean)}


def test_optimizer_and_module_are_watched_with_the_keywords_of_watch(offline: dict[str, Any]) -> None:
    fit(offline, num_sanity_val_steps=0)
    assert list(read_scalars(offline["dir"], "train/gradients/global_norm")) == [0, 4, 8, 12]
    assert read_scalars(offline["dir"], "train/lr") == dict.fromkeys([0, 4, 8, 12], pytest.approx(0.05))
    assert {"train/gradients/layer", "train/gradients/head"} <= read_tags(offline["dir"])


def test_steps_are_those_of_the_optimizer_while_gradients_are_accumulated(offline: dict[str, Any]) -> None:
    said = fit(offline, max_epochs=1, accumulate_grad_batches=2).said
    assert read_scalars(offline["dir"], "train/loss") == at_steps(said["loss"][1::2])


def test_epochs_begin_at_one_and_the_run_ends_with_the_fit(offline: dict[str, Any]) -> None:
    fit(offline)
    assert [told["epoch"] for told in read_events(offline["dir"], "epoch_begin")] == [1.0, 2.0]
    assert [told["epoch"] for told in read_events(offline["dir"], "epoch_end")] == [1.0, 2.0]
    [end] = read_events(offline["dir"], "end")
    assert end == {"status": "finished", "error": None}
    run = sidestep.active_run()
    assert run is not None
    assert not run.is_live


def test_an_exception_is_the_end_of_a_failed_run_and_passes_on(offline: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(offline, Net(fail_at=3), num_sanity_val_steps=0)
    [end] = read_events(offline["dir"], "end")
    assert (end["status"], end["error"]) == ("failed", "RuntimeError: out of luck")
    assert end["traceback"].endswith("RuntimeError: out of luck")
    assert list(read_scalars(offline["dir"], "train/loss")) == [0, 1, 2]


def test_settings_of_the_module_are_the_run_s(offline: dict[str, Any]) -> None:
    fit(offline, Net(width=6), max_epochs=1)
    configs = [
        record for record in read_records(offline["dir"]) if record.kind == "text" and record.fields[0] == "config"
    ]
    assert json.loads(configs[-1].fields[2])["width"] == 6


def test_checkpoints_are_marked_with_their_size_and_hold_nothing_of_the_callback(offline: dict[str, Any]) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(offline["dir"] / "saved", save_top_k=-1, save_last=False)
    fit(offline, enable_checkpointing=True, callbacks=[saving])
    marked = {told["path"]: told["size_mb"] for told in read_events(offline["dir"], "checkpoint")}
    files = sorted((offline["dir"] / "saved").glob("*.ckpt"))
    assert marked == {str(file): file.stat().st_size / 1e6 for file in files}
    assert len(files) == 2
    assert len(read_scalars(offline["dir"], "checkpoint_size_mb")) == 2
    assert all(seconds > 0 for seconds in read_scalars(offline["dir"], "perf/checkpoint_time_sec").values())
    content = torch.load(files[-1], weights_only=False)
    assert not any("Sidestep" in key for key in content["callbacks"])


def test_a_fit_that_goes_on_counts_on(offline: dict[str, Any]) -> None:
    folder = offline["dir"]
    first = trainer(folder, max_epochs=1)
    first.fit(Net())
    first.save_checkpoint(folder / "half.ckpt")
    module = Net()
    again = trainer(folder, callbacks=[SidestepCallback(every=4, **offline)], max_epochs=2)
    again.fit(module, ckpt_path=folder / "half.ckpt", weights_only=False)
    assert list(read_scalars(folder, "train/loss")) == list(range(BATCHES, 2 * BATCHES))
    assert list(read_scalars(folder, "train/gradients/global_norm")) == [8, 12]
    assert [told["epoch"] for told in read_events(folder, "epoch_begin")] == [2.0]


def test_a_run_of_the_script_s_stays_open_and_takes_a_test_too(offline: dict[str, Any]) -> None:
    module = Net()
    with sidestep.init(**offline) as run:
        fitting = trainer(offline["dir"], callbacks=[SidestepCallback(every=4)], max_epochs=1)
        fitting.fit(module)
        assert run.is_live
        fitting.test(module, verbose=False)
    assert list(read_scalars(offline["dir"], "test/loss").values()) == [
        pytest.approx(sum(module.said["test_loss"]) / 2)
    ]


def test_training_is_the_same_bit_for_bit(offline: dict[str, Any]) -> None:
    def trained(callbacks: list[Any]) -> list[torch.Tensor]:
        lightning.seed_everything(1, verbose=False)
        module = Net()
        trainer(offline["dir"], callbacks=callbacks, max_epochs=1).fit(module)
        return [parameter.detach() for parameter in module.parameters()]

    plain, followed = trained([]), trained([SidestepCallback(every=1, **offline)])
    assert all(torch.equal(a, b) for a, b in zip(plain, followed, strict=True))


def test_two_names_of_one_tag_are_both_kept(offline: dict[str, Any]) -> None:
    class Both(Net):
        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            loss = super().training_step(batch, index)
            self.log("train_loss", loss * 5)
            return loss

    said = fit(offline, Both(), max_epochs=1).said
    assert read_scalars(offline["dir"], "train/loss") == at_steps(said["loss"])
    assert read_scalars(offline["dir"], "train/train_loss") == at_steps([value * 5 for value in said["loss"]])


def test_an_unknown_keyword_is_refused_at_once_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"SidestepCallback\(\) takes no 'evry'; it takes blocks, budget, collector"):
        SidestepCallback(evry=3)
    with pytest.raises(UsageError, match=r"SidestepLogger\(\) takes no 'every'"):
        SidestepLogger(every=3)


def test_the_logger_takes_what_a_trainer_gives_its_loggers(offline: dict[str, Any]) -> None:
    module = Net()
    logger = SidestepLogger(**offline)
    fitting = trainer(offline["dir"], logger=logger, log_every_n_steps=4)
    fitting.fit(module)
    fitting.test(module, verbose=False)
    logger.experiment.finish(timeout=0)
    said = module.said
    expected = {step: pytest.approx(said["loss"][step]) for step in (3, 7, 11, 15)}
    assert read_scalars(offline["dir"], "train/loss") == expected
    assert set(read_scalars(offline["dir"], "val/loss")) == {BATCHES - 1, 2 * BATCHES - 1}
    assert {"train/mean", "test/loss"} <= read_tags(offline["dir"])
    assert [told["epoch"] for told in read_events(offline["dir"], "epoch_begin")][:2] == [1.0, 2.0]
    configs = [
        record for record in read_records(offline["dir"]) if record.kind == "text" and record.fields[0] == "config"
    ]
    assert json.loads(configs[-1].fields[2])["width"] == 4


def test_callback_and_logger_together_record_nothing_twice(offline: dict[str, Any]) -> None:
    logger = SidestepLogger(**offline)
    module = Net()
    fitting = trainer(offline["dir"], logger=logger, log_every_n_steps=1, callbacks=[SidestepCallback(every=4)])
    fitting.fit(module)
    logger.log_metrics({"direct": 1.0}, step=3)
    logger.experiment.finish(timeout=0)
    seen: set[tuple[str, int]] = set()
    for record in read_records(offline["dir"]):
        for tag in record.values or ():
            assert (tag, record.step) not in seen
            seen.add((tag, record.step))
    assert read_scalars(offline["dir"], "train/loss") == at_steps(module.said["loss"])
    assert read_scalars(offline["dir"], "train/direct") == {3: 1.0}
    assert read_scalars(offline["dir"], "val/batch_loss") == at_steps(module.said["batch_loss"][2:])


#: A network that a script of its own trains, whichever name of Lightning it has imported as `pl`.
NET = """
    import torch
    from sidestep.lightning import SidestepCallback, SidestepLogger

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
        def training_step(self, batch, index):
            loss = self.layer(batch).square().mean()
            self.log("train_loss", loss)
            return loss
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(rows, **given):
        quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, logger=False)
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", **quiet, **given)
        trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(rows, 2), batch_size=4))
"""


def test_the_older_name_of_lightning_works_as_well(place: Place) -> None:
    pytest.importorskip("importlib.metadata").version("pytorch-lightning")
    text = (
        """
    import warnings; warnings.simplefilter("ignore")
    import sys, pytorch_lightning as pl
    """
        + NET
        + """
    assert issubclass(SidestepCallback, pl.Callback) and issubclass(SidestepLogger, pl.loggers.Logger)
    assert "lightning" not in sys.modules
    fit(12, callbacks=[SidestepCallback(mode="offline")])
    """
    )
    place.train(text)
    assert list(read_scalars(place.root, "train/loss")) == [0, 1, 2]


def test_ranks_that_lightning_starts_record_one_run(place: Place) -> None:
    text = (
        """
    import warnings; warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    """
        + NET
        + """
    torch.set_num_threads(1)
    if __name__ == "__main__":
        fit(16, devices=2, strategy="ddp", callbacks=[SidestepCallback(mode="offline", every=1)])
    """
    )
    place.train(text)
    starts = read_events(place.root, "start")
    assert sorted(told["world_size"] for told in starts) == [2, 2]
    assert len({told["id"] for told in starts}) == 1
    assert len({path.parent for path in place.journals()}) == 2


def test_a_checkpoint_of_a_training_that_a_script_watches_itself_counts_once(offline: dict[str, Any]) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Watching(lightning.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Net) -> None:
            sidestep.watch(pl_module, trainer.optimizers, **offline)

    saving = ModelCheckpoint(offline["dir"] / "saved", save_top_k=-1, save_last=False)
    trainer(offline["dir"], enable_checkpointing=True, callbacks=[saving, Watching()]).fit(Net())
    sidestep.active_run().finish()
    files = sorted((offline["dir"] / "saved").glob("*.ckpt"))
    told = sorted(details["size_mb"] for details in read_events(offline["dir"], "checkpoint"))
    assert told == pytest.approx(sorted(file.stat().st_size / 1e6 for file in files))
    assert len(told) == len(read_scalars(offline["dir"], "perf/checkpoint_time_sec")) == 2
