"""How records are split, and where a collector is started again, does not matter: the same records, the same findings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from support.judged import as_row, block, rule, start, stream

from sidestep_collector.profiles import Choices
from sidestep_collector.rules import Rules

NAMES = ("mine/heat", "mine/work", "mine/block/a", "mine/block/b")
RULES = (
    rule("hot", above=10, clear=5, **{"for": "{steps: 3, of: 4}"}, escalate="{severity: critical, above: 100}"),
    rule("cold", below=1),
    rule("odd", form="nonfinite"),
    rule("dense", form="ratio", to="mine/work", above=2, **{"for": "{steps: 2, of: 3}"}),
    rule("jump", form="ratio", to="previous", above=2),
    rule("block", metric="mine/block/<block>", above=10, **{"for": "{steps: 2, of: 4}"}),
)
#: Rules whose memory is stored; `jump` and `dense` begin anew after a restart.
STORED = (RULES[0], RULES[1], RULES[2], RULES[5])

values = st.sampled_from([0.5, 1.0, 4.0, 6.0, 11.0, 12.0, 101.0, math.nan, math.inf])
tables = st.lists(st.tuples(*[values] * len(NAMES)), min_size=1, max_size=60)
cuts = st.lists(st.integers(0, 60), max_size=8)


def pieces(rows, at):
    edges = sorted({0, len(rows), *(cut for cut in at if cut < len(rows))})
    return [(first, rows[first:end]) for first, end in pairwise(edges)]


def settled(stored):
    """Findings as a store has them, without what is no part of a finding."""
    return {
        name: json.dumps(
            [repr(replace(one, evidence={}, news="")), {key: one.evidence[key] for key in sorted(one.evidence)}],
            default=str,
        )
        for name, one in sorted(stored.items())
        if one.state != "pending"
    }


def store(stored, findings):
    for one in findings:
        stored[one.finding] = one
        if one.state == "gone":
            del stored[one.finding]


def begun(*rules):
    made = Rules(Choices())
    made.add([], [start(stream(), *rules)])
    return made


def judged(rows, at, rules=RULES):
    stored, made = {}, begun(*rules)
    for first, piece in pieces(rows, at):
        heat = block([row[:1] for row in piece], NAMES[:1], first=first)
        others = block([row[1:] for row in piece], NAMES[1:], first=first, key_set=2)
        made.add([heat, others], [])
        store(stored, made.take())
    return stored


def judged_by_several(rows, at, rules):
    """The same with a collector of its own for each piece, which knows what is stored and nothing else."""
    stored = {}
    for first, piece in pieces(rows, at):
        made = Rules(Choices())
        made.restore([start(stream(), *rules)], [as_row(one) for one in stored.values()])
        heat = block([row[:1] for row in piece], NAMES[:1], first=first)
        others = block([row[1:] for row in piece], NAMES[1:], first=first, key_set=2)
        made.add([heat, others], [])
        store(stored, made.take())
    return stored


@given(tables, cuts)
def test_records_give_the_same_findings_however_they_are_split(rows, at):
    assert settled(judged(rows, at)) == settled(judged(rows, []))


@example([(heat, 0.5, 0.5, 0.5) for heat in (11.0, 0.5, 0.5, 0.5, 11.0)], [1])  # a hit that no longer counts
@given(tables, cuts)
def test_a_restart_changes_no_finding(rows, at):
    def essence(stored):
        return [
            (one.finding, one.state, one.severity, one.count, one.first_step, one.last_step, repr(one.value))
            for _, one in sorted(stored.items())
        ]

    assert essence(judged_by_several(rows, at, STORED)) == essence(judged(rows, [], STORED))


@given(tables)
def test_findings_are_those_of_a_plain_count(rows):
    hits = [int(row[2] > 10) for row in rows]
    fires = any(sum(hits[max(0, at - 3) : at + 1]) >= 2 for at in range(len(hits)))
    opened = {name for name, one in judged(rows, [13], RULES[5:]).items() if one.count and one.subject == "a"}
    assert bool(opened) == fires


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_quiet_values_give_nothing_at_all(count, seed):
    rows = np.random.default_rng(seed).uniform(1.5, 2.5, (count, len(NAMES))).tolist()
    assert judged([tuple(row) for row in rows], [7], RULES[:3] + RULES[5:]) == {}
