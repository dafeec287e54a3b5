"""`sidestep run` captures training scripts that know nothing of it, each in its own process with a real collector.

What is stored is compared with what the script itself computed and printed, and its result with that of the same
script run alone.
"""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from support.place import PATIENCE_SECONDS, Place

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[1] / "support" / "scripts"
#: The collector keeps what a device statistic would have: single precision.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


@dataclass
class Captured:
    """A script that ran below `sidestep run`: what it printed, by word, and what is stored of it."""

    place: Place
    out: str
    errors: str
    code: int
    said: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for word, value in re.findall(r"^(\w+) (.+)$", self.out, re.MULTILINE):
            try:
                self.said[word].append(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                continue

    @property
    def run(self) -> str:
        [(run,)] = self.place.rows("select run from runs")
        return run

    def points(self, metric: str, rank: int = 0) -> list[tuple[int, float]]:
        return self.place.values(self.run, metric, rank=rank)

    def values(self, metric: str) -> list[float]:
        return [value for _, value in self.points(metric)]

    def metrics(self) -> set[str]:
        return {metric for (metric,) in self.place.rows("select distinct metric from points")}

    def events(self, event: str) -> list[tuple[Any, ...]]:
        return self.place.rows("select step, epoch, * from events where event = ? order by seq", event)

    @property
    def has_run(self) -> bool:
        return bool(self.place.rows("select run from runs"))


def captured(place: Place, *command: str, options: tuple[str, ...] = (), **more: str) -> Captured:
    process = place.start(sys.executable, "-m", "sidestep", "run", *options, "--", *command, **more)
    out, errors = process.communicate(timeout=2 * PATIENCE_SECONDS)
    return Captured(place, out, errors, process.returncode)


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, str(SCRIPTS / name), *arguments


def written(place: Place, text: str) -> tuple[str, ...]:
    return sys.executable, str(place.written(text))


def alone(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def check_same(ran: Captured, *command: str) -> None:
    """The script prints, and ends with, the very same numbers when it is run alone."""
    plain = alone(*command)
    assert plain.returncode == 0, plain.stderr
    assert "checksum" in plain.stdout
    assert ran.out.startswith(plain.stdout)


SMALL = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(steps=12):
        for step in range(steps):
            x = torch.randn(16, 4)
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print("loss", loss.item())
"""


def test_mnist_gives_the_values_that_it_prints(place: Place, tmp_path: Path) -> None:
    saved = tmp_path / "mnist.pt"
    command = script("mnist.py", "--save-model", str(saved))
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    sampled = ran.points("train/acc")
    assert [step for step, _ in sampled] == [0, 10, 20, 30, 40]
    assert [value for _, value in sampled] == pytest.approx([ran.said["acc"][step] for step, _ in sampled], **CLOSE)
    assert ran.values("val/loss_total") == pytest.approx(ran.said["val_loss"], **CLOSE)
    assert ran.values("val/acc") == pytest.approx(ran.said["val_acc"], **CLOSE)
    assert [step for step, _ in ran.points("val/acc")] == [20, 41]
    assert ran.values("checkpoint_size_mb") == pytest.approx([saved.stat().st_size / 1e6])
    assert all(0 < share < 1 for share in ran.values("perf/data_loading_frac"))
    assert all(0.1 < value < 1 for value in ran.values("val/logits/confidence"))
    assert {"train/lr", "train/gradients/global_norm", "train/updates/relative_update_norm"} <= ran.metrics()
    check_listing(place, ran)
    document = place.document(ran.run, 2, project="mnist")
    assert document["val"]["acc"] == pytest.approx(ran.said["val_acc"][1], **CLOSE)


def check_listing(place: Place, ran: Captured) -> None:
    assert ran.errors.count("this script is captured") == 1
    for found in (
        "mnist/",
        "Net, 3,658 parameters",
        "Adadelta (lr 1)",
        "DataLoader over Subset, 1,297 samples in batches of 64",
        "nll_loss",
        "6 settings",
        "--no-auto",
    ):
        assert found in ran.errors
    [(config,)] = place.rows("select config from runs")
    assert '"batch_size": 64' in re.sub(r"\s+", " ", config.replace('":', '": '))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_imagenet_gives_the_values_of_its_meters(place: Place, tmp_path: Path, workers: str) -> None:
    command = script("imagenet.py", str(tmp_path), "--workers", workers)
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    assert ran.values("val/loss_total") == pytest.approx(ran.said["val_loss"], **CLOSE)
    assert ran.values("val/acc") == pytest.approx(ran.said["val_acc"], **CLOSE)
    assert [value for _, value in ran.points("train/lr")] == pytest.approx(ran.said["lr"][::10])
    assert ran.values("checkpoint_size_mb") == pytest.approx([size / 1e6 for size in ran.said["size"]])
    validated = place.rows("select epoch, vlast from epochs where metric = 'val/acc' order by epoch")
    assert [epoch for epoch, _ in validated] == [1, 2, 3]
    assert [value for _, value in validated] == pytest.approx(ran.said["val_acc"], **CLOSE)
    assert [step for step, _ in ran.points("perf/data_loading_frac")] == [9, 19, 29]
    assert ran.errors.count("sidestep: ") == 1  # workers say nothing


def test_a_language_model_gives_loss_and_clipped_norms(place: Place, tmp_path: Path) -> None:
    command = script("words.py", str(tmp_path / "model.pt"))
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    assert ran.values("val/loss_total") == pytest.approx(ran.said["val_loss"], **CLOSE)
    norms = ran.said["norm"]
    assert ran.values("train/gradient/global_norm_before_clip") == pytest.approx(norms, **CLOSE)
    after = [min(norm, 0.25) for norm in norms]
    assert ran.values("train/gradient/global_norm_after_clip") == pytest.approx(after, rel=1e-4)
    assert ran.values("train/gradient/clipped") == [float(norm > 0.25) for norm in norms]
    assert len(ran.values("checkpoint_size_mb")) == 2  # written into a file object


def test_accumulated_gradients_give_the_loss_that_the_step_followed(place: Place) -> None:
    command = script("gpt.py")
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    sampled = ran.points("train/acc")
    assert [step for step, _ in sampled] == [0, 10]
    assert [value for _, value in sampled] == pytest.approx([ran.said["acc"][step] for step, _ in sampled], **CLOSE)
    for split in ("val", "train_eval"):
        assert ran.values(f"{split}/loss_total") == pytest.approx(ran.said[f"{split}_loss"], **CLOSE)
    assert [step for step, _ in ran.points("val/loss_total")] == [0, 3, 7]


def test_a_scaled_loss_counts_unscaled_and_skipped_steps_are_seen(place: Place) -> None:
    command = script("gpt.py", "--scaled")
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.said["skipped"] == [5]
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    assert ran.values("train/amp/skipped").count(1.0) == 1
    assert ran.values("train/amp/scale") == ran.said["scale"]


def test_no_auto_leaves_a_script_alone(place: Place) -> None:
    ran = captured(place, *script("mnist.py", "--epochs", "1"), options=("--no-auto",))
    assert ran.code == 0
    assert not ran.has_run
    assert "captured" not in ran.errors


def test_a_script_that_never_trains_begins_no_run(place: Place) -> None:
    text = (
        SMALL
        + """
    with torch.no_grad():
        F.cross_entropy(model(torch.randn(4, 4)), torch.zeros(4, dtype=torch.long))
    optimizer.step()  # without gradients
    torch.save(model.state_dict(), __file__ + ".pt")
    print("done")
    """
    )
    ran = captured(place, *written(place, text))
    assert (ran.code, ran.out.splitlines()[0]) == (0, "done")
    assert not ran.has_run
    assert "captured" not in ran.errors


def test_a_script_with_a_run_of_its_own_is_not_captured_twice(place: Place) -> None:
    text = (
        SMALL
        + """
    import sidestep
    run = sidestep.watch(model, optimizer, project="mine", every=4)
    train()
    run.log({"loss": 1.0}, step=3)
    """
    )
    ran = captured(place, *written(place, text))
    assert ran.code == 0, ran.errors
    assert place.rows("select project from runs") == [("mine",)]
    assert "train/loss_total" not in ran.metrics()
    assert "captured" not in ran.errors


def test_an_uncaught_exception_looks_as_if_nothing_were_wrapped(place: Place) -> None:
    text = (
        SMALL
        + """
    train()
    F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 7]))
    """
    )
    command = written(place, text)
    plain = alone(*command)
    ran = captured(place, *command)
    assert (ran.code, plain.returncode) == (1, 1)
    assert plain.stderr in ran.errors
    [(state,)] = place.rows("select state from runs")
    assert state == "failed"


def test_an_exit_code_passes(place: Place) -> None:
    ran = captured(place, *written(place, SMALL + "\n    train()\n    raise SystemExit(7)\n"))
    assert ran.code == 7
    assert len(ran.values("train/loss_total")) == 12


def test_a_fault_in_capture_is_said_once_and_does_not_reach_the_script(place: Place) -> None:
    text = (
        SMALL
        + """
    from sidestep.auto import losses
    def broken(*_):
        raise RuntimeError("a fault of ours")
    losses.Losses._add = broken
    train()
    print("done")
    """
    )
    ran = captured(place, *written(place, text), SIDESTEP_STRICT="0")
    assert (ran.code, ran.errors.count("a fault of ours")) == (0, 1)
    assert "done" in ran.out
    assert len(ran.values("train/acc")) == 2


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


def test_what_traces_transforms_or_compiles_is_left_alone(place: Place) -> None:
    text = (
        SMALL
        + """
    import warnings
    warnings.simplefilter("ignore")
    train()
    def loss_of(x, y):
        return F.cross_entropy(x, y)
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    scripted = torch.jit.script(loss_of)
    traced = torch.jit.trace(loss_of, (x, y))
    functional = torch.func.vmap(torch.func.grad(lambda a, b: F.cross_entropy(a[None], b[None])))
    symbolic = torch.fx.symbolic_trace(loss_of)
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True)
    for other in (scripted, traced, symbolic, compiled):
        assert torch.equal(other(x, y), loss_of(x, y))
    assert len(list(symbolic.graph.nodes)) == 4
    assert not [node for node in traced.graph.nodes() if "argmax" in node.kind() or "max" in node.kind()]
    functional(x.detach(), y)
    print("done")
    """
    )
    ran = captured(place, *written(place, text))
    assert ran.code == 0, ran.errors
    assert "done" in ran.out
    assert ran.errors.count("sidestep: ") == 1


def test_two_ranks_of_torchrun_are_one_run(place: Place) -> None:
    text = """
    import os
    import torch
    from torch import nn
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if __name__ == "__main__":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        torch.manual_seed(rank)
        model = DistributedDataParallel(nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizer.step()
            os.write(1, f"loss{rank} {loss.item()}\\n".encode())  # in one piece: both ranks write into one pipe
        dist.destroy_process_group()
    """
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone")
    ran = captured(place, *torchrun, str(place.written(text)), OMP_NUM_THREADS="1")
    assert ran.code == 0, ran.errors
    for rank in (0, 1):
        stored = [value for _, value in ran.points("train/loss_total", rank=rank)]
        assert stored == pytest.approx(ran.said[f"loss{rank}"], **CLOSE)
    assert ran.errors.count("this script is captured") == 1


def test_ranks_that_a_script_spawns_are_one_run(place: Place) -> None:
    text = """
    import os
    import torch
    from torch import distributed as dist, multiprocessing, nn

    def work(rank):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        dist.init_process_group("gloo", init_method="file://" + __file__ + ".meet", rank=rank, world_size=2)
        model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        dist.destroy_process_group()

    if __name__ == "__main__":
        multiprocessing.spawn(work, nprocs=2)
    """
    ran = captured(place, *written(place, text), OMP_NUM_THREADS="1")
    assert ran.code == 0, ran.errors
    assert [len(ran.points("train/loss_total", rank=rank)) for rank in (0, 1)] == [3, 3]


def _path(*folders: Path) -> str:
    import os

    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([given] if given else [])])
