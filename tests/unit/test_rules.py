"""Rules: when a finding opens, goes on, gets worse and ends."""

import math
from dataclasses import replace

import pytest
from support.judged import as_row, block, epoch, rule, stage, start, stream, told

from sidestep_collector.blocks import Event, Moment
from sidestep_collector.profiles import Choices
from sidestep_collector.profiles.spec import Override
from sidestep_collector.rules import Rules
from sidestep_collector.rules.casebook import FINDINGS_MAX

NAN = math.nan


def judged(rules, *values, first=0, **more):
    rules.add([block(list(values), first=first, **more)], [])
    return rules.take()


def test_a_value_beyond_the_bound_opens_a_finding_with_its_evidence():
    rules = stage(rule(above=10))
    [found] = judged(rules, 1.0, 3.0, 12.0)
    assert (found.finding, found.state, found.severity) == ("hot@2", "firing", "warning")
    assert (found.rule, found.profile, found.metric, found.rank) == ("hot", "mine", "mine/heat", 0)
    assert (found.first_step, found.last_step, found.count) == (2, 2, 1)
    assert (found.value, found.threshold, found.message) == (12.0, 10.0, " 12 beyond 10")
    assert found.advice == ("cool it down by 10 K",)
    assert found.evidence["steps"] == [0, 1, 2]
    assert found.evidence["values"] == [1.0, 3.0, 12.0]
    assert found.evidence["baseline"] == 2.0
    assert found.news == "opened"


def test_what_stays_within_its_bounds_is_no_finding():
    assert judged(stage(rule(above=10)), 1.0, 9.0, 10.0) == []


def test_a_finding_needs_so_many_of_the_last_observations():
    rules = stage(rule(above=10, **{"for": "{steps: 3, of: 4}"}))
    assert told(judged(rules, 11, 1, 11, 1, 1)) == [("hot@2", "pending", "warning", 0)]
    begun_later = judged(rules, 11, 11, 1, first=5)  # the hit of step 2 no longer counts
    assert told(begun_later) == [("hot@2", "gone", "warning", 0), ("hot@5", "pending", "warning", 0)]
    assert told(judged(rules, 11, first=8)) == [("hot@5", "firing", "warning", 1)]


def test_what_was_pending_and_came_to_nothing_goes():
    rules = stage(rule(above=10, **{"for": "{steps: 2, of: 3}"}))
    assert told(judged(rules, 11)) == [("hot@0", "pending", "warning", 0)]
    assert told(judged(rules, 1, 1, 1, first=1)) == [("hot@0", "gone", "warning", 0)]
    assert judged(rules, 1, 1, first=4) == []


def test_a_finding_that_goes_on_counts_and_opens_no_other():
    rules = stage(rule(above=10))
    judged(rules, 11)
    [found] = judged(rules, 12, 13, 14, first=1)
    assert told([found]) == [("hot@0", "firing", "warning", 4)]
    assert (found.value, found.last_step, found.news) == (14.0, 3, "")


def test_a_finding_ends_only_below_the_level_to_clear_at():
    rules = stage(rule(above=10, clear=5))
    judged(rules, 11)
    assert told(judged(rules, 9, 6, 9, first=1)) == [("hot@0", "firing", "warning", 1)]
    [found] = judged(rules, 5, first=4)
    assert (found.state, found.news, found.last_step) == ("resolved", "resolved", 4)


def test_a_finding_that_fires_again_soon_is_the_same_one():
    rules = stage(rule(above=10))
    judged(rules, 11, 1)
    [found] = judged(rules, 12, first=50)
    assert told([found]) == [("hot@0", "firing", "warning", 2)]
    assert found.news == "opened"


def test_a_finding_that_fires_again_later_is_another():
    rules = stage(rule(above=10))
    judged(rules, 11, 1)
    assert told(judged(rules, 12, first=500)) == [("hot@500", "firing", "warning", 1)]


def test_both_are_told_where_one_ends_and_another_begins_in_one_go():
    rules = stage(rule(above=10))
    assert told(judged(rules, 11, *[1] * 300, 12)) == [
        ("hot@0", "resolved", "warning", 1),
        ("hot@301", "firing", "warning", 1),
    ]


def test_severity_rises_and_does_not_fall():
    rules = stage(rule(above=10, escalate="{severity: critical, above: 100}"))
    judged(rules, 11)
    [worse] = judged(rules, 101, first=1)
    assert (worse.severity, worse.news) == ("critical", "worse")
    [found] = judged(rules, 12, first=2)
    assert (found.severity, found.news) == ("critical", "")


def test_the_beginning_is_not_judged():
    rules = stage(rule(above=10, warmup=20))
    assert judged(rules, *[11] * 20) == []
    assert told(judged(rules, 11, first=20)) == [("hot@20", "firing", "warning", 1)]


def test_a_rule_without_a_warmup_leaves_out_twenty_steps():
    rules = stage(rule(above=10).replace("    warmup: 0\n", ""))
    assert judged(rules, *[11] * 20) == []
    assert judged(rules, 11, first=20) != []


def test_each_subject_has_a_finding_of_its_own():
    rules = stage(rule(metric="mine/block/<block>", above=10))
    rules.add([block([[11, 1, 12]], ("mine/block/a", "mine/block/b", "mine/block/c"))], [])
    assert [(one.finding, one.subject, one.metric) for one in rules.take()] == [
        ("hot/a@0", "a", "mine/block/a"),
        ("hot/c@0", "c", "mine/block/c"),
    ]


def test_ranks_share_a_finding_which_ends_with_the_last():
    rules = stage(rule(above=10))
    rules.add([block([11], to=stream(0)), block([12], to=stream(1))], [])
    assert told(rules.take()) == [("hot@0", "firing", "warning", 2)]
    rules.add([block([1], first=1, to=stream(0))], [])
    assert [one.state for one in rules.take()] == ["firing"]
    rules.add([block([1], first=1, to=stream(1))], [])
    assert [one.state for one in rules.take()] == ["resolved"]


def test_a_value_below_its_bound_is_found_as_well():
    rules = stage(rule(below=1e-8, clear=1e-7))
    [found] = judged(rules, 1.0, 0.0)
    assert (found.value, found.threshold) == (0.0, 1e-8)


def test_bounds_on_both_sides_name_the_one_that_was_crossed():
    rules = stage(rule(below=1, above=10))
    assert [judged(rules, value, first=at)[0].threshold for at, value in enumerate((11, 0))] == [10, 1]


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_what_is_no_finite_number_is_found(value):
    rules = stage(rule(form="nonfinite", severity="critical", message='"none since {step}"'))
    [found] = judged(rules, 1.0, value)
    assert (found.severity, found.message, found.first_step) == ("critical", "none since 1", 1)
    assert math.isnan(found.threshold)


def test_what_is_no_number_is_neither_beyond_a_bound_nor_safe():
    rules = stage(rule(above=10))
    assert judged(rules, NAN) == []
    judged(rules, 11, first=1)
    assert [one.state for one in judged(rules, NAN, first=2)] == ["firing"]


def test_a_ratio_is_of_values_of_one_record():
    rules = stage(rule(form="ratio", to="mine/work", above=2))
    rules.add([block([[3, 2], [9, 3], [5, 0]], ("mine/heat", "mine/work"))], [])
    [found] = rules.take()
    assert (found.first_step, found.value) == (1, 3.0)


def test_a_ratio_takes_the_last_value_of_another_record():
    rules = stage(rule(form="ratio", to="mine/work", above=2))
    work = block([10, 1], ("mine/work",), key_set=2)
    rules.add([block([5, 5, 5]), work], [])
    [found] = rules.take()
    assert (found.first_step, found.value, found.count) == (1, 5.0, 2)


def test_a_ratio_of_a_subject_is_to_the_same_subject():
    rules = stage(rule(form="ratio", metric="mine/block/<block>", to="mine/part/<block>", above=2))
    names = ("mine/block/a", "mine/block/b", "mine/part/a", "mine/part/b")
    rules.add([block([[9, 9, 1, 9]], names)], [])
    assert [one.finding for one in rules.take()] == ["hot/a@0"]


def test_a_ratio_to_the_value_before_finds_a_jump():
    rules = stage(rule(form="ratio", to="previous", above=2, clear=1.5))
    judged(rules, 1, 1)
    [found] = judged(rules, 3, first=2)
    assert (found.first_step, found.value) == (2, 3.0)


def test_a_further_condition_must_hold_too():
    rules = stage(rule(above=10, also="[{metric: mine/work, below: 1}]"))
    rules.add([block([[11, 2], [11, 0.5]], ("mine/heat", "mine/work"))], [])
    assert [one.first_step for one in rules.take()] == [1]


def test_an_epoch_is_judged_by_its_statistic_once():
    rules = stage(rule(over="epoch", above=10, **{"for": "{epochs: 2, of: 3}"}))
    for number in (1, 2):
        rules.add_epochs([epoch(number, mine_heat=11)])
    [found] = rules.take()
    assert (found.state, found.rank, found.first_step, found.last_step) == ("firing", -1, 100, 200)
    rules.add_epochs([epoch(2, mine_heat=1), epoch(2, mine_heat=1)])
    assert rules.take() == []


def test_first_epochs_are_not_judged_where_a_rule_says_so():
    rules = stage(rule(over="epoch", above=10, warmup=2))
    rules.add_epochs([epoch(1, mine_heat=11), epoch(2, mine_heat=11)])
    assert rules.take() == []
    rules.add_epochs([epoch(3, mine_heat=11)])
    assert len(rules.take()) == 1


def test_a_rule_can_be_switched_off_by_the_script():
    assert judged(stage(rule(above=10), rules={"hot": False}), 11) == []


def test_a_rule_can_be_set_otherwise_by_the_script():
    rules = stage(rule(above=10), rules={"hot": {"above": 100, "severity": "info"}})
    assert judged(rules, 11) == []
    assert judged(rules, 101, first=1)[0].severity == "info"


def test_a_rule_can_be_set_otherwise_by_the_collector_and_the_script_has_the_last_word():
    by_collector = {"hot": Override(above=100)}
    rules = Rules(Choices(), by_collector)
    rules.add([block([11])], [start(stream(), rule(above=10))])
    assert rules.take() == []
    rules = Rules(Choices(), by_collector)
    rules.add([block([11])], [start(stream(), rule(above=10), rules={"hot": {"above": 5}})])
    assert len(rules.take()) == 1


@pytest.mark.parametrize("said", [{"hot": {"above": "much"}}, {"hot": {"clear": 99}}, {"hut": False}])
def test_what_cannot_be_set_so_is_said_and_the_rule_stays(said, capsys):
    assert len(judged(stage(rule(above=10), rules=said), 11)) == 1
    assert next(iter(said)) in capsys.readouterr().out


def test_so_many_findings_of_a_rule_are_kept_and_no_more(capsys):
    rules = stage(rule(metric="mine/block/<block>", above=10))
    names = tuple(f"mine/block/{at}" for at in range(FINDINGS_MAX + 50))
    rules.add([block([[11] * len(names)] * 3, names)], [])
    assert len(rules.take()) == FINDINGS_MAX
    assert capsys.readouterr().out.count("a rule found too much") == 1


def over(rules, to=None):
    """The end of a stream, and of the epochs that ended with it."""
    rules.add([], [Event(Moment(to or stream(), 99, 0, 99, 1.0), "end", {})])
    rules.add_epochs([])


def blind(capsys):
    """What was said of rules that have nothing to judge: the rules with what they lack."""
    said = capsys.readouterr().out.splitlines()
    return [line.partition("rules='")[2].partition("' run=")[0] for line in said if "nothing to judge" in line]


CURVED = rule("curved", metric="curvature/lambda_max", above=10)


def test_rules_that_have_nothing_to_judge_are_named_once_when_their_metrics_should_have_come(capsys):
    both = rule("both", above=10, also="[{metric: mine/work, below: 0}]")
    rules = stage(rule(above=10), rule("cold", metric="mine/work", below=0), both, CURVED)
    judged(rules, 1)
    rules.add_epochs([epoch(1, mine_heat=1)])
    assert blind(capsys) == []  # what is logged at the end of an epoch may come a little later
    for number in (2, 2, 3):
        rules.add_epochs([epoch(number, mine_heat=1)])
    assert blind(capsys) == ["both: mine/work; cold: mine/work"]
    over(rules)
    assert blind(capsys) == ["curved: curvature/lambda_max"]


def test_rules_are_not_blind_to_what_follows_from_an_epoch_nor_to_families_of_tags(capsys):
    share = rule("share", metric="train/gradients/clip_fraction", over="epoch", above=0.5)
    rules = stage(share, rule("block", metric="mine/block/<block>", above=10), CURVED)
    judged(rules, [1, 2], names=("mine/block/a", "mine/block/b"))
    judged(rules, 1, names=("curvature/lambda_max",), key_set=2)
    summary = epoch(1)
    for number in (1, 2):
        rules.add_epochs([replace(summary, epoch=number, statistics={"train/gradients/clip_fraction": {"mean": 0.1}})])
    over(rules)
    assert blind(capsys) == []


def test_what_a_run_recorded_before_a_restart_is_not_said_to_lack(capsys):
    rules = Rules(Choices())
    past = [epoch(number, mine_heat=1) for number in (1, 2, 3)]
    rules.restore([start(stream(), rule(above=10), CURVED)], [], past, [(stream(), ("curvature/lambda_max",))])
    rules.add_epochs([epoch(4, mine_heat=1)])
    over(rules)
    assert blind(capsys) == []


def test_what_is_pending_goes_when_its_rank_ends_and_what_fires_stays():
    held = {"for": "{steps: 2, of: 3}"}
    given = (rule(above=10, **held), rule("block", metric="mine/block/<block>", above=10, **held))
    rules = Rules(Choices())
    rules.add([], [start(stream(rank), *given) for rank in (0, 1)])
    for rank in (0, 1):
        rules.add([block([[11, 1]], ("mine/heat", "mine/block/a"), to=stream(rank))], [])
    rules.add([block([[1, 11], [1, 11]], ("mine/heat", "mine/block/a"), first=1)], [])
    assert told(rules.take()) == [("hot@0", "pending", "warning", 0), ("block/a@1", "firing", "warning", 1)]
    over(rules)
    assert told(rules.take()) == []  # the other rank may yet fire
    over(rules, stream(1))
    assert told(rules.take()) == [("hot@0", "gone", "warning", 0)]


def test_what_is_pending_over_epochs_goes_when_the_last_rank_ends():
    rules = Rules(Choices())
    rules.add([], [start(stream(rank), rule(over="epoch", above=10, **{"for": "{epochs: 2}"})) for rank in (0, 1)])
    rules.add_epochs([epoch(1, mine_heat=11)])
    assert told(rules.take()) == [("hot@100", "pending", "warning", 0)]
    over(rules)
    assert rules.take() == []
    rules.add([], [Event(Moment(stream(1), 99, 0, 99, 1.0), "end", {})])
    rules.add_epochs([epoch(2, mine_heat=1)])  # the epoch that ended with it
    assert told(rules.take()) == [("hot@100", "gone", "warning", 0)]


def test_the_end_of_an_attempt_whose_rank_has_started_again_ends_nothing():
    rules = Rules(Choices())
    rules.add([], [start(stream(0, n), rule(above=10, **{"for": "{steps: 2, of: 3}"})) for n in (0, 1)])
    rules.add([block([11], to=stream(0, 1))], [])
    over(rules, stream(0, 0))
    assert told(rules.take()) == [("hot@0", "pending", "warning", 0)]


def test_a_fitting_profile_is_named_once_to_a_run_without(capsys):
    rules = Rules(Choices())
    rules.add([block([[1, 2]], ("train/loss/h0", "train/masking/mask_ratio"))], [])
    for number in (1, 2):
        rules.add_epochs([epoch(number)])
    said = capsys.readouterr().out
    assert said.count("a profile fits this run") == 1
    assert "jepa" in said


def test_a_run_without_a_profile_is_judged_by_the_common_part():
    rules = Rules(Choices())
    rules.add([block([1, NAN], ("train/loss_total",))], [])
    assert [one.finding for one in rules.take()] == ["nonfinite_loss@1"]


STUCK = {"form": "plateau", "over": "epoch", "below": 0.2, "clear": 0.25, "gain": 0.01, "for": "{epochs: 3}"}


def through(rules, *values, first=1):
    """Findings after each epoch, with the rule restarted nowhere."""
    found = []
    for number, value in enumerate(values, start=first):
        rules.add_epochs([epoch(number, mine_heat=value)])
        found += told(rules.take())
    return found


def test_a_plateau_is_a_value_that_is_not_good_yet_and_no_better_than_the_best_before():
    assert through(stage(rule(**STUCK)), 0.05, 0.08, 0.11, 0.115, 0.12, 0.09) == [
        ("hot@400", "pending", "warning", 0),
        ("hot@400", "pending", "warning", 0),
        ("hot@400", "firing", "warning", 1),
    ]


@pytest.mark.parametrize(
    "values",
    [
        (0.05, 0.07, 0.09, 0.11, 0.13, 0.15, 0.17, 0.19),  # low, and it learns
        (0.1, 0.106, 0.112, 0.118, 0.124, 0.13, 0.136),  # each gain is small, two of them are none
        (0.1, 0.3, 0.3, 0.3, 0.3, 0.3),  # it stands, where it is good
        (0.1, 0.1, 0.1, 0.12, 0.1, 0.1, 0.14),  # it never stands for three epochs
        (0.1, NAN, NAN, NAN, NAN),  # nothing is known of it
    ],
)
def test_what_still_gains_or_is_good_is_no_plateau(values):
    assert [found for found in through(stage(rule(**STUCK)), *values) if found[1] == "firing"] == []


def test_a_plateau_of_what_should_fall_lies_above_a_bound_and_ends_when_it_gains_again():
    rules = stage(rule(form="plateau", over="epoch", above=1.0, **{"for": "{epochs: 2}"}))
    assert through(rules, 4.0, 4.0, 5.0)[-1] == ("hot@200", "firing", "warning", 1)
    assert through(rules, 3.0, 2.0, first=4)[-1] == ("hot@200", "resolved", "warning", 1)


def test_the_first_epochs_are_what_a_plateau_is_compared_with_though_they_are_not_judged():
    rules = stage(rule(**STUCK | {"warmup": 3}))
    assert through(rules, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)[-1] == ("hot@400", "firing", "warning", 1)


@pytest.mark.parametrize("restarts", [{1}, {3}, {4, 6}, {20, 21}])
def test_a_restart_changes_nothing_about_epochs_that_are_compared_with_those_before(restarts):
    falls = rule("falls", form="ratio", metric="mine/heat", to="previous", over="epoch", below=0.9)
    values = [0.1, 0.12, 0.1, 0.11, 0.119, 0.1, 0.15, *[0.15] * 15, 0.14, 0.13, 0.18, 0.1]

    def findings(restarts):
        rules, stored, past = stage(rule(**STUCK), falls), {}, []
        for number, value in enumerate(values, start=1):
            rules.add_epochs([epoch(number, mine_heat=value), *past[-2:]])  # some are told again
            past.append(epoch(number, mine_heat=value))
            stored |= {one.finding: one for one in rules.take()}
            stored = {name: one for name, one in stored.items() if one.state != "gone"}
            if number in restarts:
                rules = Rules(Choices())
                begin = rules.begin([one.epoch for one in past])
                rows = [as_row(one) for one in stored.values()]
                rules.restore(
                    [start(stream(), rule(**STUCK), falls)], rows, [one for one in past if one.epoch >= begin]
                )
        return [(one.finding, one.state, one.count, one.last_step) for one in stored.values()]

    assert findings(restarts) == findings(set())
    assert {name.partition("@")[0] for name, *_ in findings(set())} == {"hot", "falls"}
