"""Profiles: what a family of trainings measures, when that is worrying, how it is laid out, what to do about it.

A profile is one YAML file: `sidestep_schemas/profiles/<name>.yaml`, or one of a user's own. `places` reads YAML and
remembers the lines, `spec` says what may stand in it, `load` checks it as a whole, `vocabulary` finds what a tag
means, `choices` knows which run goes by which profile, `second_names` gives a family's own names to what is measured
under others. The room lies below the stages, which all may ask it; it keeps no run's values.
"""

from __future__ import annotations

from sidestep_collector.profiles.choices import Choices, suggested
from sidestep_collector.profiles.load import COMMON, Problem, builtin, check, names, parse
from sidestep_collector.profiles.second_names import SecondNames
from sidestep_collector.profiles.spec import Chart, MetricSpec, Playbook, Profile, RuleSpec
from sidestep_collector.profiles.vocabulary import Declared, Vocabulary, vocabulary

__all__ = [
    "COMMON",
    "Chart",
    "Choices",
    "Declared",
    "MetricSpec",
    "Playbook",
    "Problem",
    "Profile",
    "RuleSpec",
    "SecondNames",
    "Vocabulary",
    "builtin",
    "check",
    "names",
    "parse",
    "suggested",
    "vocabulary",
]
