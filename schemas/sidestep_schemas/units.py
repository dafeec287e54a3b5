"""Conversions between the units that metrics are given in."""

from __future__ import annotations

import math


def nats_to_bits(nats: float) -> float:
    """An information in bits: bits = nats / ln 2."""
    return nats / math.log(2)
