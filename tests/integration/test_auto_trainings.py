"""Ways of training that a capture understands: modules, Lightning, several networks, own updates, closures."""

from __future__ import annotations

import ast
import math
import os
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from support.captured import CLOSE, SMALL, captured, check_same, written
from support.place import Place


def test_a_script_is_captured_as_a_module(place: Place) -> None:
    package = place.root.parent / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(dedent(SMALL) + "\nif __name__ == '__main__':\n    train()\n", encoding="utf-8")
    ran = captured(place, sys.executable, "-m", "pack.train", PYTHONPATH=_path(place.root.parent))
    assert ran.code == 0, ran.errors
    assert place.rows("select project from runs") == [("pack.train",)]
    assert len(ran.values("train/loss_total")) == 12


def test_what_lightning_tries_out_before_a_fit_is_no_validation(place: Place) -> None:
    text = """
    import warnings
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)
            self.losses = []

        def training_step(self, batch, _):
            return F.cross_entropy(self.layer(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.losses.append(F.cross_entropy(self.layer(batch[0]), batch[1]))

        def on_validation_epoch_end(self):
            print("sane" if self.trainer.sanity_checking else "val", torch.stack(self.losses).mean().item())
            self.losses.clear()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    x = torch.randn(32, 4)
    data = TensorDataset(x, x[:, :3].argmax(1))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=2, **quiet)
    trainer.fit(Net(), DataLoader(data, 8), DataLoader(data, 16))
    """
    ran = captured(place, *written(place, text))
    assert ran.code == 0, ran.errors
    assert len(ran.said["sane"]) == 1
    assert len(ran.said["val"]) == 2
    assert ran.values("val/loss_total") == pytest.approx(ran.said["val"], **CLOSE)
    assert ran.values("val/num_batches") == [2, 2]


def test_several_networks_and_optimizers_are_one_run(place: Place) -> None:
    text = """
    import torch
    from torch import nn
    torch.manual_seed(0)
    netG, netD = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Linear(4, 1)
    criterion = nn.BCEWithLogitsLoss()
    optimizerD = torch.optim.Adam(netD.parameters())
    optimizerG = torch.optim.Adam(netG.parameters())
    for step in range(11):
        netD.zero_grad()
        real = criterion(netD(torch.randn(8, 4)), torch.ones(8, 1))
        real.backward()
        fake = netG(torch.randn(8, 2))
        false = criterion(netD(fake.detach()), torch.zeros(8, 1))
        false.backward()
        optimizerD.step()
        netG.zero_grad()
        lossG = criterion(netD(fake), torch.ones(8, 1))
        lossG.backward()
        optimizerG.step()
        print("lossD", real.item() + false.item())
        print("lossG", lossG.item())
    """
    ran = captured(place, *written(place, text))
    assert ran.code == 0, ran.errors
    assert ran.values("train/loss_total") == pytest.approx(ran.said["lossD"], **CLOSE)
    assert ran.values("train/loss_1") == pytest.approx(ran.said["lossG"], **CLOSE)
    assert {"train/gradients/netD", "train/gradients/netG_0", "train/lr_1"} <= ran.metrics()


def test_weights_that_a_script_updates_itself_are_captured(place: Place) -> None:
    text = """
    import io
    import torch
    from torch import nn
    torch.manual_seed(0)
    config = {"lr": 0.1, "epochs": 2}
    model, criterion = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    def batch():
        x = torch.randn(16, 4)
        return x, x[:, :3].argmax(1)
    for epoch in range(config["epochs"]):
        model.train()
        for step in range(11):
            x, target = batch()
            model.zero_grad()
            loss = criterion(model(x), target)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for p in model.parameters():
                p.data.add_(p.grad, alpha=-config["lr"])
            print("loss", loss.item())
            print("norm", norm.item())
        model.eval()
        with torch.no_grad():
            x, target = batch()
            print("val_loss", criterion(model(x), target).item())
        file = io.BytesIO()
        torch.save(model, file)
        with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.Tanh, set]):
            model = torch.load(io.BytesIO(file.getvalue())) if epoch else model
    print("checksum", sum(p.double().sum().item() for p in model.parameters()))
    """
    command = written(place, text)
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.points("train/loss_total") == [
        (step, pytest.approx(loss, **CLOSE)) for step, loss in enumerate(ran.said["loss"])
    ]
    assert ran.values("train/gradient/global_norm_before_clip") == pytest.approx(ran.said["norm"], **CLOSE)
    clipped = [min(norm, 1.0) for norm in ran.said["norm"][::10]]
    parts = [ran.values(f"train/gradients/{block}") for block in ("layer_0", "layer_2")]
    assert [math.hypot(*norms) for norms in zip(*parts, strict=True)] == pytest.approx(clipped, rel=1e-4)
    assert ran.points("val/loss_total") == [
        (10 + 11 * number, pytest.approx(loss, **CLOSE)) for number, loss in enumerate(ran.said["val_loss"])
    ]
    assert "train/updates/relative_update_norm" not in ran.metrics()
    assert "the script updates weights itself" in ran.errors
    [(config,)] = place.rows("select config from runs")
    assert ast.literal_eval(config)["lr"] == 0.1


def test_a_closure_gives_the_loss_at_the_beginning_of_the_step(place: Place) -> None:
    text = (
        SMALL
        + """
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x = torch.randn(64, 4)
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        return loss
    for step in range(5):
        print("loss", optimizer.step(closure).item())
    """
    )
    ran = captured(place, *written(place, text))
    assert ran.code == 0, ran.errors
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)


def test_a_second_training_of_a_process_is_said_to_be_left_out(place: Place) -> None:
    text = (
        SMALL
        + """
    def validate():
        with torch.no_grad():
            F.cross_entropy(model.eval()(torch.zeros(4, 4)), torch.zeros(4, dtype=torch.long))
        model.train()
    train(4)
    validate()
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(4)
    validate()
    """
    )
    ran = captured(place, *written(place, text), SIDESTEP_STRICT="0")
    assert ran.code == 0
    assert [step for step, _ in ran.points("train/loss_total")] == [0, 1, 2, 3]
    assert [step for step, _ in ran.points("val/loss_total")] == [3]
    assert ran.errors.count("not captured") == 1


def _path(*folders: Path) -> str:
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([given] if given else [])])
