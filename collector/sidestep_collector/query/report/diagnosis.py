"""What is wrong with a training of a classifier, by its epochs: the six troubles that people have most.

Each is a function of the facts; thresholds are those of the profile `classification` and its like. A trouble that the
rules found while the run went stands in the report besides, as it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sidestep_collector.profiles import COMMON
from sidestep_collector.query.report.curves import Course, Reduction, Spread

#: Names under which scripts say how many classes there are.
_CLASSES: Final = (
    "num_classes",
    "n_classes",
    "nb_classes",
    "classes",
    "num_labels",
    "data.num_classes",
    "model.num_classes",
)
#: Profiles that the advice on an early plateau is meant for: where none but the common one fits, an accuracy will do.
_CLASSIFIERS: Final = frozenset({COMMON, "classification"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run.

    Attributes:
        config: settings as the script gave them, nested ones by their path with dots.
        epochs: epochs seen.
        profile: the one that the run goes by.
        rate: reductions of the learning rate; rate_last: what it is now; rate_greatest: the highest that it was.
        loss, val_loss: their courses; None where nobody logged any.
        acc, val_acc: likewise, as fractions.
        gradient: norms of the whole gradient before clipping.
        update: relative updates.
        clipped: share of clipped steps over the run.
        amp_scale, norm_after_clip, norm_at_step: medians over epochs, for the order of clipping.
        shared_data: what says that training and validation wrap one dataset; "" where nothing does.
        shared_is_random: whether its transform may draw random numbers, as far as anybody knows.
    """

    config: Mapping[str, Any]
    epochs: int
    profile: str = COMMON
    rate: tuple[Reduction, ...] = ()
    rate_last: float | None = None
    rate_greatest: float | None = None
    loss: Course | None = None
    val_loss: Course | None = None
    acc: Course | None = None
    val_acc: Course | None = None
    gradient: Spread | None = None
    update: Spread | None = None
    clipped: float | None = None
    amp_scale: float | None = None
    norm_after_clip: float | None = None
    norm_at_step: float | None = None
    shared_data: str = ""
    shared_is_random: bool = True

    @property
    def classes(self) -> int | None:
        """How many classes there are, where the settings say so."""
        for name in _CLASSES:
            value = self.config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 1:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A trouble: its name, how bad it is, what shows it, and what to change, the most promising first."""

    name: str
    title: str
    severity: str
    evidence: tuple[str, ...]
    advice: tuple[str, ...]


def diagnose(facts: Facts) -> list[Diagnosis]:
    """All troubles that the facts show, the worst first; of a trouble and what follows from it, the cause alone."""
    found = [diagnosis for judge in _JUDGES if (diagnosis := judge(facts)) is not None]
    causes = {diagnosis.name for diagnosis in found}
    follow = {name for cause, names in _FOLLOW.items() if cause in causes for name in names}
    found = [diagnosis for diagnosis in found if diagnosis.name not in follow]
    order = {"critical": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda diagnosis: order[diagnosis.severity])


def lr_dropped_early(facts: Facts) -> Diagnosis | None:
    """The rate was reduced within the first 10 epochs, and the loss settles within 3 epochs of it."""
    curve = facts.val_loss or facts.loss
    if curve is None or curve.plateau_since is None:
        return None
    early = [drop for drop in facts.rate if drop.epoch <= 10 and drop.is_step]
    drop = next((drop for drop in early if -1 <= curve.plateau_since - drop.epoch <= 3), None)
    if drop is None:
        return None
    return Diagnosis(
        "lr_dropped_early",
        "the learning rate was reduced too early",
        "warning",
        (
            f"learning rate from {drop.before:.3g} to {drop.after:.3g} in epoch {drop.epoch:g}",
            f"the loss gains nothing after epoch {curve.plateau_since:g}",
        ),
        (
            f"give ReduceLROnPlateau more patience: {_patience(facts.config)}",
            "or take a schedule without early drops: CosineAnnealingLR over all epochs, or OneCycleLR",
            f"begin higher: lr = {3 * drop.before:.2g}",
        ),
    )


def early_plateau(facts: Facts) -> Diagnosis | None:
    """A classifier improves for 3 to 6 epochs, then stops, with an accuracy below 20 %."""
    curve, acc = facts.val_loss or facts.loss, facts.val_acc or facts.acc
    if facts.profile not in _CLASSIFIERS or curve is None or acc is None or acc.best >= 0.2:
        return None
    if curve.plateau_since is None or curve.plateau_since > 7:
        return None
    return Diagnosis(
        "early_plateau",
        "the training stops improving after a few epochs",
        "warning",
        (
            f"no gain after epoch {curve.plateau_since:g} of {curve.epochs}",
            f"best accuracy {acc.best:.1%} (epoch {acc.best_epoch:g})",
        ),
        (
            _lowered(facts.config, "label_smoothing", "label smoothing", "0.05 or 0", 0.05),
            _lowered(facts.config, "weight_decay", "weight decay", "1e-4", 1e-4),
            "take augmentation back to flips and crops, and see whether it learns",
            "check the transforms: sidestep check-transforms module:train module:val",
            "take a schedule without early drops",
        ),
    )


def vanishing_gradients(facts: Facts) -> Diagnosis | None:
    """Gradient norms below 0.01, and weights that change by less than a millionth."""
    gradient, update = facts.gradient, facts.update
    if gradient is None or update is None or gradient.mean >= 0.01 or update.mean >= 1e-6:
        return None
    rate = f": lr = {10 * facts.rate_greatest:.2g}" if facts.rate_greatest else ""
    return Diagnosis(
        "vanishing_gradients",
        "gradients vanish",
        "critical",
        (f"mean gradient norm {gradient.mean:.2g}", f"relative update {update.mean:.2g} a step"),
        (
            f"raise the learning rate tenfold{rate}",
            "check that the clipping limit is not far below the norms, and that a loss scale is undone before clipping",
            "initialise anew (Kaiming for ReLU), and look at train/activations/<module>/dead_share for dead units",
        ),
    )


def chance_level(facts: Facts) -> Diagnosis | None:
    """Accuracy is that of guessing, and the loss is near ln K; where K is unknown, accuracy below 5 % and K from it."""
    acc, loss = facts.val_acc or facts.acc, facts.loss or facts.val_loss
    if acc is None or loss is None or facts.epochs < 2:
        return None
    classes = facts.classes or (round(1 / acc.last) if 0 < acc.last < 0.05 else None)
    if (
        classes is None
        or acc.best > min(2 / classes, 1 / classes + 0.05)
        or abs(loss.last / math.log(classes) - 1) > 0.05
    ):
        return None
    return Diagnosis(
        "chance_level",
        "it predicts no better than chance",
        "critical",
        (
            f"accuracy {acc.last:.2%}, chance is {1 / classes:.2%} with {classes} classes",
            f"loss {loss.last:.4g}, ln {classes} = {math.log(classes):.4g}",
        ),
        (
            "compare labels with images by eye: a shifted or shuffled label file looks like this",
            "see that training and validation share no transform: sidestep check-transforms module:train module:val",
            "train on 100 samples until they are learned by heart; where that fails, the model or the rate is at fault",
        ),
    )


def amp_clip_order(facts: Facts) -> Diagnosis | None:
    """Under mixed precision, gradients at the step are smaller than they were after clipping, by the loss scale."""
    scale, after, at_step = facts.amp_scale, facts.norm_after_clip, facts.norm_at_step
    if scale is None or after is None or at_step is None or scale < 4 or at_step <= 0:
        return None
    if not 0.5 <= after / at_step / scale <= 2:
        return None
    return Diagnosis(
        "amp_clip_order",
        "gradients are clipped before they are unscaled",
        "critical",
        (
            f"loss scale {scale:g}; norm after clipping {after:.3g}, and {at_step:.3g} at the optimizer's step",
            f"so the limit acts on scaled gradients: it is {scale:g} times tighter than it reads",
        ),
        ("scaler.unscale_(optimizer) first, then clip_grad_norm_, then scaler.step(optimizer) and scaler.update()",),
    )


def shared_transform(facts: Facts) -> Diagnosis | None:
    """Training and validation wrap one dataset object, so they share its transform: no harm while it is fixed."""
    if not facts.shared_data:
        return None
    return Diagnosis(
        "shared_transform",
        "training and validation share a transform",
        "warning" if facts.shared_is_random else "info",
        (facts.shared_data,),
        (
            "make two dataset objects, each with its own transform, over one split of the indices",
            "see it yourself: sidestep check-transforms module:train module:val",
        ),
    )


#: Of a cause, the troubles that follow from it: they say nothing more.
_FOLLOW: Final[Mapping[str, frozenset[str]]] = {
    "amp_clip_order": frozenset({"vanishing_gradients", "chance_level", "lr_dropped_early", "early_plateau"}),
    "vanishing_gradients": frozenset({"chance_level", "lr_dropped_early", "early_plateau"}),
    "chance_level": frozenset({"early_plateau"}),
    "lr_dropped_early": frozenset({"early_plateau"}),
}

_JUDGES: Final[tuple[Callable[[Facts], Diagnosis | None], ...]] = (
    amp_clip_order,
    chance_level,
    vanishing_gradients,
    lr_dropped_early,
    early_plateau,
    shared_transform,
)


def _patience(config: Mapping[str, Any]) -> str:
    known = config.get("patience")
    return f"patience={2 * known} instead of {known}" if isinstance(known, int) and known > 0 else "patience=10"


def _lowered(config: Mapping[str, Any], name: str, title: str, target: str, below: float) -> str:
    known = config.get(name)
    if isinstance(known, int | float) and not isinstance(known, bool):
        return f"{title} is {known:g}: {'lower it to ' + target if known > below else 'low enough'}"
    return f"lower {title} to {target}"
