"""What may stand in a profile: every key, as data. docs/profiles.md explains them with examples.

Numbers are compared as they are; `"1"` is the unit of what has none, so that a forgotten unit is an error.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from sidestep_schemas.catalog import Metric
from sidestep_schemas.catalog.metric import Better

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Tag = Annotated[str, StringConstraints(pattern=r"^\S+$")]
Severity = Literal["info", "warning", "critical"]
Statistic = Literal["mean", "std", "min", "max", "last", "n", "n_nonfinite"]

#: The order in which severity rises.
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")
NO_UNIT: Final = "1"
#: What a message may name, with a value to try it with.
MESSAGE_FIELDS: Final = {"subject": "s", "metric": "m", "value": 1.0, "threshold": 1.0, "step": 1}
#: A ratio of a value to the one before it.
PREVIOUS: Final = "previous"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Target(_Spec):
    """What is good: in words, and as bounds where it has any."""

    text: Words
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Judged(_Spec):
    """What is good of a metric, and when to worry."""

    target: Target | None = None
    worry: Words | None = None

    @field_validator("target", mode="before")
    @classmethod
    def _words_alone(cls, given: Any) -> Any:
        return {"text": given} if isinstance(given, str) else given


class MetricSpec(Judged):
    """A metric, declared: what the catalogue says of its own, and where it comes from."""

    name: Words
    unit: Words
    tier: Literal["step", "epoch", "periodic"]
    meaning: Words
    source: Words
    better: Better = None
    reduction: Literal["mean", "sum", "max", "l2"] = "mean"
    same_as: Tag | None = None

    def metric(self, tag: str) -> Metric:
        """As the catalogue has it."""
        unit = "" if self.unit == NO_UNIT else self.unit
        return Metric(tag, self.name, unit, self.tier, self.meaning, self.better, self.reduction)


class Held(_Spec):
    """How long something must hold: so many of the last so many observations."""

    steps: int | None = Field(default=None, ge=1, le=1000)
    epochs: int | None = Field(default=None, ge=1, le=1000)
    of: int | None = Field(default=None, ge=1, le=1000)

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("takes either steps or epochs")
        if self.of is not None and self.of < self.count:
            raise ValueError(f"{self.count} of {self.of} can never be")
        return self

    @property
    def count(self) -> int:
        """How many observations."""
        return self.steps or self.epochs or 1

    @property
    def window(self) -> int:
        """Of how many."""
        return self.of or self.count


class Condition(_Spec):
    """A further metric that must be beyond a bound at the same time."""

    metric: Tag
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("takes either above or below")
        return self

    @property
    def bound(self) -> str:
        """The bound, in words."""
        return f"below {self.below:g}" if self.below is not None else f"above {self.above:g}"


class Escalation(_Spec):
    """From where on an open finding is worse."""

    severity: Severity
    above: float | None = None
    below: float | None = None


class Suggestion(_Spec):
    """A setting to change, for a sweep or a callback to read: by what to multiply it, or its new value."""

    setting: Words
    multiply: float | None = Field(default=None, gt=0)
    value: float | str | bool | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.multiply is None) == (self.value is None):
            raise ValueError("takes either multiply or value")
        return self


class RuleSpec(_Spec):
    """When a metric tells of trouble.

    Forms: `threshold` judges a value, `ratio` one value by another (or by the one before it), `plateau` a value that
    is no better than the best before it, `nonfinite` asks whether it is a number at all. `over: step` takes values as
    they come, `over: epoch` a statistic of an epoch.
    """

    form: Literal["threshold", "ratio", "plateau", "nonfinite"]
    metric: Tag
    to: Tag | None = None
    over: Literal["step", "epoch"] = "step"
    statistic: Statistic = "mean"
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    gain: float = Field(default=0.0, ge=0)
    also: list[Condition] = Field(default_factory=list[Condition])
    held: Held | None = Field(default=None, alias="for")
    warmup: int | None = Field(default=None, ge=0)
    severity: Severity = "warning"
    escalate: Escalation | None = None
    message: Words
    advice: list[Words] = Field(min_length=1)
    suggest: Suggestion | None = None
    enabled: bool = True

    @field_validator("message")
    @classmethod
    def _can_be_filled_in(cls, message: str) -> str:
        try:
            message.format(**MESSAGE_FIELDS)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"cannot be filled in ({error!r}); it may name {', '.join(MESSAGE_FIELDS)}") from None
        return message

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        bounded = self.above is not None or self.below is not None
        if self.form == "nonfinite" and (bounded or self.clear is not None):
            raise ValueError("a nonfinite rule has no bounds")
        if self.form == "nonfinite" and self.over == "epoch":
            raise ValueError("over epochs judge the statistic n_nonfinite by a threshold")
        if self.form != "nonfinite" and not bounded:
            raise ValueError(f"a {self.form} rule needs above or below")
        if (self.form == "ratio") != (self.to is not None):
            raise ValueError("a ratio rule, and no other, needs `to`: another metric, or `previous`")
        if self.form == "plateau" and (self.over != "epoch" or (self.above is None) == (self.below is None)):
            raise ValueError("a plateau rule goes `over: epoch`, and takes either above or below")
        if self.gain and self.form != "plateau":
            raise ValueError("gain is of a plateau rule, and of no other")
        if self.held is not None and (self.held.epochs is not None) != (self.over == "epoch"):
            raise ValueError(f"a rule over {self.over} is held for {self.over}s")
        self._check_clear()
        return self

    def _check_clear(self) -> None:
        if self.clear is None:
            return
        if self.above is not None and self.below is not None:
            raise ValueError("clear has no side where a rule has both above and below: write two rules")
        if (self.above is not None and self.clear > self.above) or (self.below is not None and self.clear < self.below):
            raise ValueError("clear lies beyond the level it fires at")

    def is_gain(self, value: float, best: float) -> bool:
        """Whether a value is better than the best before it (NaN for none), by more than the gain that counts."""
        return not (value <= best + self.gain if self.below is not None else value >= best - self.gain)

    def fires(self, quote: str = "") -> str:
        """When it fires, in words; tags stand between quotes."""
        if self.form == "nonfinite":
            words = "no finite number"
        else:
            sides = (("below", self.below), ("above", self.above))
            words = " or ".join(f"{side} {level:g}" for side, level in sides if level is not None)
        gain = f" by more than {self.gain:g}" if self.gain else ""
        words = f"{words} and no better than before{gain}" if self.form == "plateau" else words
        over = f" over {quote}{self.to}{quote}" if self.to else ""
        also = "".join(f", and {quote}{one.metric}{quote} {one.bound}" for one in self.also)
        held = f", {self.held.count} of {self.held.window} {self.over}s" if self.held else ""
        return f"{quote}{self.metric}{quote}{over} {words}{also}{held}"

    @property
    def reads(self) -> tuple[str, ...]:
        """The metrics it needs."""
        to = () if self.to is None or self.to == PREVIOUS else (self.to,)
        return (self.metric, *to, *(condition.metric for condition in self.also))


class Override(_Spec):
    """What a user says of a rule: in a collector's settings, or `sidestep.init(rules=...)`."""

    enabled: bool | None = None
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    held: Held | None = Field(default=None, alias="for")
    warmup: int | None = Field(default=None, ge=0)
    severity: Severity | None = None

    @model_validator(mode="before")
    @classmethod
    def _switch_alone(cls, given: Any) -> Any:
        return {"enabled": given} if isinstance(given, bool) else given

    def applied(self, rule: RuleSpec) -> RuleSpec:
        """The rule as it is to be.

        Raises:
            ValidationError: the two together cannot be meant.
        """
        said = self.model_dump(exclude_none=True)
        if ("above" in said or "below" in said) and "clear" not in said:
            said["clear"] = None  # it belonged to the bound that is replaced
        return RuleSpec.model_validate(rule.model_dump() | said)


class Chart(_Spec):
    """Curves in one picture; of kind margin a curve between two others."""

    title: Words
    kind: Literal["multiline", "margin"] = "multiline"
    tags: list[Tag] = Field(default_factory=list[Tag])
    value: Tag | None = None
    lower: Tag | None = None
    upper: Tag | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        margin = (self.value, self.lower, self.upper)
        if self.kind == "multiline" and (not self.tags or any(margin)):
            raise ValueError("a multiline chart takes tags, and nothing else")
        if self.kind == "margin" and (self.tags or not all(margin)):
            raise ValueError("a margin chart takes value, lower and upper")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """Tags of its curves."""
        return (*self.tags, *(tag for tag in (self.value, self.lower, self.upper) if tag is not None))


class Step(_Spec):
    """A step of a playbook."""

    look: Tag
    means: Words
    do: Words


class Playbook(_Spec):
    """What to look at, in which order, when something is wrong."""

    title: Words
    steps: list[Step] = Field(min_length=1)


class Profile(_Spec):
    """A family of metrics: what it measures, what is worrying, how it is laid out, what to do."""

    name: Name
    title: Words
    meaning: Words
    metrics: dict[Tag, MetricSpec] = Field(default_factory=dict[str, MetricSpec])
    targets: dict[Tag, Judged] = Field(default_factory=dict[str, Judged])
    rules: dict[Name, RuleSpec] = Field(default_factory=dict[str, RuleSpec])
    panels: dict[Words, list[Chart]] = Field(default_factory=dict[str, list[Chart]])
    playbooks: dict[Name, Playbook] = Field(default_factory=dict[str, Playbook])
    suggest: list[Tag] = Field(default_factory=list[str])

    @field_validator("metrics")
    @classmethod
    def _one_for_one(cls, metrics: dict[str, MetricSpec]) -> dict[str, MetricSpec]:
        for tag, spec in metrics.items():
            if spec.same_as is not None and ("<" in tag or "<" in spec.same_as):
                raise ValueError(f"{tag}: same_as stands between two tags without placeholders")
        sources = [spec.same_as for spec in metrics.values() if spec.same_as is not None]
        if len(set(sources)) < len(sources):
            raise ValueError(f"same_as names {max(sources, key=sources.count)!r} twice")
        return metrics

    @cached_property
    def second_names(self) -> dict[str, str]:
        """Tags that this profile calls otherwise, with what it calls them."""
        return {spec.same_as: tag for tag, spec in self.metrics.items() if spec.same_as is not None}
