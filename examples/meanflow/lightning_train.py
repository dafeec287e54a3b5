"""The same training with Lightning: what sidestep needs is one callback.

python examples/meanflow/lightning_train.py --epochs 50
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import lightning.pytorch as lightning
import torch
from data import latents
from loss import MeanFlowLoss, sample, sample_times
from model import BLOCKS, UNet
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from train import SAMPLES, details_of, losses_of

import sidestep
from sidestep.lightning import SidestepCallback


class MeanFlow(lightning.LightningModule):
    """The network, its moving average, and the loss."""

    def __init__(self, lr: float, seed: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.model = UNet()
        self.loss = MeanFlowLoss()
        self.draws = torch.Generator().manual_seed(seed + 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss; its parts, norms and times where they are due."""
        (x,) = batch
        r, t = sample_times(len(x), 0.25, self.draws)
        noise = torch.randn(x.shape, generator=self.draws)
        run = sidestep.active_run()
        wanted = run.diagnostics
        is_due = self.global_step % wanted.log_every_n_steps == 0
        given = self.loss(self.model, x, noise, r, t, return_diagnostics=is_due and wanted.meanflow_norms)
        self.log_dict({f"train/{name}": value for name, value in losses_of(given).items()})
        if is_due and wanted.meanflow_norms:
            run.log(details_of(given), split=None, step=self.global_step)
        if is_due and wanted.time_sampling_stats:
            run.tensor("train/sampling/t", t, step=self.global_step)
            run.tensor("train/sampling/h", t - r, step=self.global_step)
        return given["loss"]

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """The losses of the same noise and times each time."""
        (x,) = batch
        fixed = torch.Generator().manual_seed(0)
        noise, (r, t) = torch.randn(x.shape, generator=fixed), sample_times(len(x), 0.25, fixed)
        given = losses_of(self.loss(self.model, x, noise, r, t))
        self.log_dict({f"val/{name}": value for name, value in given.items()})

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip, and have the norms before and after recorded."""
        sidestep.clip_grad_norm_(self.parameters(), 4.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.model.parameters(), lr=self.lr, weight_decay=0.01)


class Averaging(lightning.Callback):
    """Keeps a moving average of the network, and draws samples from it."""

    def __init__(self, ema: AveragedModel, real: Tensor) -> None:
        super().__init__()
        self.ema, self.real = ema, real
        self.noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))

    def on_train_batch_end(self, trainer: Any, module: MeanFlow, *_: Any) -> None:  # noqa: ARG002 - Lightning's
        """Take the step's weights in."""
        self.ema.update_parameters(module.model)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Draw samples every so many epochs."""
        run = sidestep.active_run()
        if (trainer.current_epoch + 1) % run.diagnostics.every_n_epochs == 0:
            run.tensor("samples/real_latents", self.real)
            run.tensor("samples/generated_latents", sample(self.ema, self.noise))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--diagnostics", type=json.loads, default={"log_every_n_steps": 5}, help="JSON")
    args = parser.parse_args()

    lightning.seed_everything(args.seed, verbose=False)
    module = MeanFlow(lr=2e-3, seed=args.seed)
    ema = AveragedModel(module.model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    train, val = latents(args.size, args.seed), latents(64, args.seed + 1)
    follow = SidestepCallback(
        project="meanflow",
        profile="meanflow",
        blocks={name: f"model.{prefix}" for name, prefix in BLOCKS.items()},
        ema={f"model.{name}": mean for name, mean in ema.module.named_parameters()},
        config=vars(args),
        diagnostics=args.diagnostics,
    )
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[follow, Averaging(ema, val[:SAMPLES])],
    )
    trainer.fit(module, DataLoader(TensorDataset(train), 32, shuffle=True), DataLoader(TensorDataset(val), 64))
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
