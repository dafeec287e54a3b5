"""The probes that come with sidestep, those of others, and what settings make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from sidestep.errors import UsageError
from sidestep.probes.protocol import Probe
from sidestep_schemas.diagnostics import Diagnostics

#: Name to module and class; loaded when asked for. Reported in this order.
BUILT_IN: Final = {
    "clipping": ("sidestep.probes.clipping", "Clipping"),
    "optimizer": ("sidestep.probes.optimizer", "OptimizerProbe"),
    "amp": ("sidestep.probes.amp", "AmpProbe"),
    "gradients": ("sidestep.probes.gradients", "GradientProbe"),
    "gradient_flow": ("sidestep.probes.gradient_flow", "GradientFlowProbe"),
    "updates": ("sidestep.probes.updates", "UpdateProbe"),
    "effectiveness": ("sidestep.probes.effectiveness", "EffectivenessProbe"),
    "weights": ("sidestep.probes.weights", "WeightProbe"),
    "validation": ("sidestep.probes.validation", "ValidationProbe"),
    "moments": ("sidestep.probes.moments", "MomentProbe"),
    "activations": ("sidestep.probes.activations", "ActivationProbe"),
    "attention": ("sidestep.probes.attention", "AttentionProbe"),
    "data": ("sidestep.probes.data", "DataProbe"),
    "logits": ("sidestep.probes.logits", "LogitProbe"),
    "features": ("sidestep.probes.features", "FeatureProbe"),
    "throughput": ("sidestep.probes.throughput", "Throughput"),
    "ema": ("sidestep.probes.ema", "EmaProbe"),
    "time": ("sidestep.probes.timing", "TimeProbe"),
    "memory": ("sidestep.probes.memory", "MemoryProbe"),
    "system": ("sidestep.probes.system", "SystemProbe"),
    "checkpoints": ("sidestep.probes.checkpoints", "CheckpointProbe"),
    "kinds": ("sidestep.probes.kinds", "KindProbe"),
    "backward": ("sidestep.probes.backward", "BackwardProbe"),
    "noise": ("sidestep.probes.noise", "NoiseProbe"),
    "curvature": ("sidestep.probes.curvature", "CurvatureProbe"),
}
#: Those of a `watch` that names none.
DEFAULTS: Final = (
    *("clipping", "optimizer", "amp", "gradients", "updates", "weights", "validation", "moments", "activations"),
    *("attention", "throughput", "ema", "time", "memory", "system", "checkpoints"),
)
GROUP: Final = "sidestep.probes"

Setting = bool | int | str | Mapping[str, Any] | Probe
Given = Mapping[str, Setting] | Sequence[str | Probe] | None

#: What a run of a profile has besides, or set otherwise.
OF_PROFILES: Final[Mapping[str, Mapping[str, Setting]]] = {
    "jepa": {"gradient_flow": True},
    "meanflow": {"ema": "epoch"},
    "backward": {"logits": True, "effectiveness": True, "backward": True},
}


def chosen(given: Given, profile: str = "", wanted: Diagnostics | None = None) -> list[Probe]:
    """Probes of a `watch`: those by default and of the run's profile, and what settings add, change or leave out.

    Args:
        given: names to True, False, when to sample, or settings by keyword; or names and probes to add.
        profile: name of the run's profile.
        wanted: the run's settings, which stand behind `given`.

    Raises:
        UsageError: a name that no probe has, a setting that it does not take.
    """
    settings: dict[str, Setting] = {
        **dict.fromkeys(DEFAULTS, True),
        **OF_PROFILES.get(profile, {}),
        **_of(wanted or Diagnostics()),
        **_by_name(given),
    }
    return [_made(name, setting) for name, setting in settings.items() if setting is not False]


def _of(wanted: Diagnostics) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    if not wanted.grad_block_norms:
        settings["gradients"] = {"blocks": False}
    if not wanted.ema_divergence:
        settings["ema"] = False
    if not wanted.performance_counters:
        settings |= dict.fromkeys(("throughput", "time", "memory"), False)
    return settings


def _by_name(given: Given) -> dict[str, Setting]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str | Probe):
        given = [given]
    return {
        entry if isinstance(entry, str) else _name(entry): True if isinstance(entry, str) else entry for entry in given
    }


def _made(name: str, setting: Setting) -> Probe:
    if isinstance(setting, Probe):
        return setting
    kind = _load(name)
    if setting is True:
        return kind()
    keywords: Mapping[str, Any] = setting if isinstance(setting, Mapping) else {"every": setting}
    try:
        return kind(**keywords)
    except TypeError as error:
        raise UsageError(f"probe {name!r}: {error}") from error


def _load(name: str) -> type[Probe]:
    if name in BUILT_IN:
        module, kind = BUILT_IN[name]
        return getattr(import_module(module), kind)
    others = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in others:
        raise UsageError(f"there is no probe {name!r}; there are: {', '.join((*BUILT_IN, *others))}")
    return others[name].load()


def _name(probe: object) -> str:
    if not isinstance(probe, Probe):
        raise UsageError(
            f"a probe is a name, or an object of a class derived from sidestep.probes.Probe, not {probe!r}"
        )
    return probe.name or type(probe).__name__
