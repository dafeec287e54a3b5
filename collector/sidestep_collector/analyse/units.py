"""Units: a loss that is logged in nats is given in bits too, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from sidestep_collector.analyse.protocol import Analyser, Floats, Span, Values

#: (tag in nats, tag in bits)
PAIRS: Final = (("train/loss_nats", "train/loss_bits"), ("val/loss_nats", "val/loss_bits"))


def bits(nats: Floats) -> Floats:
    """Loss in bits: nats / ln 2 (Cover & Thomas, Elements of Information Theory, 2.1); any shape."""
    return nats / math.log(2)


def nats(of_bits: Floats) -> Floats:
    """Loss in nats: bits · ln 2; any shape."""
    return of_bits * math.log(2)


class Units(Analyser):
    """`train/loss_nats` and `train/loss_bits`, of both where one is logged; likewise of `val`."""

    name = "units"
    reads = tuple(tag for pair in PAIRS for tag in pair)
    gives = reads

    def add(self, span: Span) -> Iterator[Values]:
        """See `Analyser`."""
        for in_nats, in_bits in PAIRS:
            for source, given, convert in ((in_nats, in_bits, bits), (in_bits, in_nats, nats)):
                series = span.series.get(source)
                if series is not None and series.fresh < len(series.seq):
                    rows = slice(series.fresh, None)
                    yield Values.along(series, rows, {given: convert(series.values[rows])})
