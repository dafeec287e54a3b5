"""What of the diagnostics a run wants, and how often: `sidestep.init(diagnostics={"every_n_epochs": 10})`.

Some of it is for the training process (which probes measure, what a script logs), some for the collector, to which it
travels with the run's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, cast

from sidestep_schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The settings of diagnostics, with what holds where nothing is said.

    Attributes:
        enabled: whether the run records anything; without, it is off (`mode="off"`).
        log_every_n_steps: steps from one measurement of `watch` to the next, where it is not told `every`.
        every_n_epochs: epochs from one set of samples to the next, as scripts go by it, and epochs that the
            collector's periodic documents take together.
        json_every_n_epochs: epochs that are whole multiples of it have a document.
        grad_block_norms: gradient norms of blocks (probe `gradients`).
        meanflow_norms: norms and weights of an average-velocity loss: what scripts go by.
        time_sampling_stats: statistics of sampled times, likewise.
        ema_divergence: distance of averaged weights (probe `ema`).
        performance_counters: throughput, phase times and memory (probes `throughput`, `time`, `memory`).
        latent_histograms: histograms of generated latents, which the collector makes.
    """

    enabled: bool = True
    log_every_n_steps: int = 50
    every_n_epochs: int = 25
    json_every_n_epochs: int = 1
    grad_block_norms: bool = True
    meanflow_norms: bool = True
    time_sampling_stats: bool = True
    ema_divergence: bool = True
    performance_counters: bool = True
    latent_histograms: bool = True

    @classmethod
    def read(cls, given: object) -> Self:
        """Settings from a mapping, or None for those that hold where nothing is said.

        Raises:
            ConfigError: a name that there is not, or a value that cannot be meant; all that are wrong at once.
        """
        if given is None or isinstance(given, cls):
            return given or cls()
        if not isinstance(given, Mapping):
            raise ConfigError(f"diagnostics={given!r}: it maps names of settings to their values")
        said = cast("Mapping[Any, Any]", given)
        kinds = {field.name: type(field.default) for field in fields(cls)}
        wrong = [problem for name, value in said.items() if (problem := _problem(name, value, kinds))]
        if wrong:
            raise ConfigError(f"diagnostics: {'; '.join(wrong)}")
        return cls(**said)

    def said(self) -> dict[str, Any]:
        """What is other than where nothing is said."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


def _problem(name: object, value: object, kinds: Mapping[str, type]) -> str:
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        return f"there is no {name!r}, there are {', '.join(kinds)}"
    if kind is bool and not isinstance(value, bool):
        return f"{name}={value!r} is neither True nor False"
    if kind is int and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        return f"{name}={value!r} is no whole number of at least 1"
    return ""
