"""Average-velocity flow matching on small 3-D latents on the CPU, followed by sidestep.

    python examples/meanflow/train.py --epochs 50
    torchrun --nproc-per-node 2 examples/meanflow/train.py          # each rank takes half of each batch

Trains for about a minute. `--diagnostics '{"every_n_epochs": 10}'` sets what docs/diagnostics.md lists.
"""

from __future__ import annotations

import argparse
import json
import os

import torch
import torch.distributed as dist
from data import latents
from loss import MeanFlowLoss, sample, sample_times
from model import BLOCKS, UNet
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sidestep

SAMPLES = 8


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--size", type=int, default=192, help="latents to train on")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight", type=float, default=1.0, help="of L_MF beside L_FM")
    parser.add_argument("--data-proportion", type=float, default=0.25, help="share of plain flow matching samples")
    parser.add_argument("--derivative", choices=("jvp", "difference"), default="jvp")
    parser.add_argument("--ema-decay", type=float, default=0.98)
    parser.add_argument("--clip", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--diagnostics", type=json.loads, default={"log_every_n_steps": 5}, help="JSON")
    return parser.parse_args()


def losses_of(given: dict[str, Tensor]) -> dict[str, float]:
    """The three losses by the names they are logged under."""
    return {"loss_total": given["loss"].item(), "loss_fm": given["loss_fm"].item(), "loss_mf": given["loss_mf"].item()}


def details_of(given: dict[str, Tensor]) -> dict[str, float]:
    """Norms, weights and losses by channel, by the names they are logged under."""
    norms = {
        f"train/meanflow/{name}": value.item()
        for name, value in given.items()
        if name.endswith("_norm") or name.startswith("adaptive")
    }
    channels = {f"train/channel/loss_ch{c}": value.item() for c, value in enumerate(given["loss_per_channel"])}
    return norms | channels


def average_over_ranks(model: torch.nn.Module) -> None:
    """Gradients as if all ranks had one batch."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def main() -> None:
    """Train; validate after each epoch; draw samples every so many."""
    args = arguments()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    model = UNet()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    loss = MeanFlowLoss(weight=args.weight, derivative=args.derivative)

    data, val = latents(args.size, args.seed), latents(64, args.seed + 1)
    order = torch.Generator().manual_seed(args.seed)  # the same on all ranks
    draws = torch.Generator().manual_seed(args.seed + 1 + rank)
    fixed = torch.Generator().manual_seed(args.seed)
    val_noise, val_times = torch.randn(val.shape, generator=fixed), sample_times(len(val), 0.25, fixed)

    run = sidestep.watch(
        model,
        optimizer,
        blocks=BLOCKS,
        ema=ema,
        project="meanflow",
        profile="meanflow",
        config=vars(args),
        diagnostics=args.diagnostics,
    )
    wanted = run.diagnostics
    step = 0
    for epoch in run.epoch(range(1, args.epochs + 1)):
        for batch in torch.randperm(len(data), generator=order).split(args.batch_size):
            x = data[batch[rank::ranks]]
            noise = torch.randn(x.shape, generator=draws)
            r, t = sample_times(len(x), args.data_proportion, draws)
            is_due = not run.is_off and step % wanted.log_every_n_steps == 0
            given = loss(model, x, noise, r, t, return_diagnostics=is_due and wanted.meanflow_norms)
            optimizer.zero_grad()
            given["loss"].backward()
            if ranks > 1:
                average_over_ranks(model)
            sidestep.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            ema.update_parameters(model)
            run.log(losses_of(given))
            if is_due and wanted.meanflow_norms:
                run.log(details_of(given), split=None)
            if is_due and wanted.time_sampling_stats:
                run.tensor("train/sampling/t", t)
                run.tensor("train/sampling/h", t - r)
            step += 1

        with torch.no_grad():
            validated = losses_of(loss(ema, val, val_noise, *val_times))
        run.log(validated, split="val", epoch=epoch)
        if rank == 0:
            if epoch % wanted.every_n_epochs == 0 and not run.is_off:
                run.tensor("samples/real_latents", val[:SAMPLES])
                run.tensor("samples/generated_latents", sample(ema, val_noise[:SAMPLES]))
            print(f"epoch {epoch:2d}  loss {given['loss'].item():.4f}  val loss {validated['loss_total']:.4f}")

    print(run.finish())
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
