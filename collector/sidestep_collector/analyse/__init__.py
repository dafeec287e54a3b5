"""Analyse: new numbers from shipped ones.

`Analysis` keeps the last values of what analysers read, hands them what is new once a flush, and turns what they
give into blocks and items like those that were received; they are aggregated, shown and stored in the same
transaction as their sources. `protocol.py` is the contract of an analyser. The room opens no socket and no file;
what a restarted collector must know of the past is handed in.
"""

from __future__ import annotations

from sidestep_collector.analyse.registry import load
from sidestep_collector.analyse.stage import Analysis

__all__ = ["Analysis", "load"]
