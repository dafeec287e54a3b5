"""What is measured at a watched optimizer's steps: one family of quantities a file.

`protocol` is the contract of a probe, `registry` the table of those that come with sidestep. A probe that looks at
single parameters gives `Norms`, one number a parameter, and `fold` makes them norms of blocks when every watched
optimizer has stepped.
"""

from __future__ import annotations

from sidestep.probes.norms import FUSED, Norms, Placed, by_kind, fold, foreach_norm
from sidestep.probes.protocol import Part, Probe, Watched

__all__ = ["FUSED", "Norms", "Part", "Placed", "Probe", "Watched", "by_kind", "fold", "foreach_norm"]
