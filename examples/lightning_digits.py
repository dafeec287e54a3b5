"""The handwritten digits with Lightning: what sidestep needs is one callback.

    python examples/lightning_digits.py --epochs 5

Needs lightning and scikit-learn beside sidestep.
"""

from __future__ import annotations

import argparse

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.utils.data import DataLoader, TensorDataset, random_split

from sidestep.lightning import SidestepCallback


class DigitNet(lightning.LightningModule):
    """8x8 images to ten classes."""

    def __init__(self, width: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.stem = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, 10) for images of shape (batch, 64)."""
        return self.head(self.stem(images))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss; `train/loss_total` and `train/acc` at every step."""
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log_dict({"train_loss_total": loss, "train_acc": (logits.argmax(1) == batch[1]).float().mean()})
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """`val/loss_total` and `val/acc`, twice an epoch."""
        logits = self(batch[0])
        acc = (logits.argmax(1) == batch[1]).float().mean()
        self.log_dict({"val_loss_total": F.cross_entropy(logits, batch[1]), "val_acc": acc})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main() -> None:
    """Train, validating twice an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    lightning.seed_everything(args.seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    train, val = random_split(TensorDataset(images.float() / 16, labels), [len(labels) - 360, 360])
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        val_check_interval=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SidestepCallback(project="digits", every=5, config=vars(args))],
    )
    trainer.fit(DigitNet(), DataLoader(train, 64, shuffle=True), DataLoader(val, 360))
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
