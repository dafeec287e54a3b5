"""Scripts that log elsewhere: change the import, and what they log is recorded here.

    from sidestep.compat import SummaryWriter      # instead of torch.utils.tensorboard
    import sidestep.compat.wandb as wandb          # instead of wandb

Names are kept as the script gives them. What these have and sidestep has not is said once and does nothing.
"""

from __future__ import annotations

from sidestep.compat.tensorboard import SummaryWriter

__all__ = ["SummaryWriter"]
