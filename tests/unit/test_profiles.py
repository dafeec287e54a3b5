"""Profiles: what comes with sidestep is right, and what is wrong with one of a user's own is told by line."""

import json
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.commands import call

from sidestep_collector.commands.profile import profile as command
from sidestep_collector.profiles import (
    COMMON,
    Chart,
    Choices,
    MetricSpec,
    Playbook,
    Profile,
    RuleSpec,
    builtin,
    check,
    names,
    parse,
    suggested,
    vocabulary,
)
from sidestep_collector.profiles.spec import Override, Step
from sidestep_schemas.catalog import METRICS
from sidestep_schemas.errors import ProfileError

ROOT = Path(__file__).resolve().parents[2]
HEAD = "name: mine\ntitle: Mine\nmeaning: What I train.\n"
METRIC = """metrics:
  train/mine/energy:
    name: energy
    unit: J
    tier: step
    meaning: Energy of the state.
    source: script
"""
RULE = """rules:
  too_hot:
    form: threshold
    metric: train/mine/energy
    above: 10
    message: "{value:g} is above {threshold:g}"
    advice: [cool it]
"""


def problems(text):
    return [(problem.line, problem.what) for problem in check(text, "mine.yaml")[1]]


@pytest.mark.parametrize("name", [COMMON, *names()])
def test_nothing_is_wrong_with_what_comes_with_sidestep(name):
    text = (resources.files("sidestep_schemas") / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    found, wrong = check(text, name)
    assert wrong == []
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("name", names())
def test_every_quantity_of_a_profile_has_a_meaning_a_source_and_what_is_good_or_worrying_for_rules(name):
    found = builtin(name)
    for tag, spec in found.metrics.items():
        assert spec.meaning.endswith("."), tag
        assert len(spec.source) > 5, tag
    assert found.panels
    assert found.playbooks
    assert found.suggest
    for rule in found.rules.values():
        assert all(len(advice) > 10 for advice in rule.advice)


def test_all_five_families_are_there():
    assert names() == ["backward", "classification", "jepa", "meanflow", "slope"]


@pytest.mark.parametrize("name", names())
def test_a_profile_agrees_with_the_catalogue_where_both_declare_a_metric(name):
    catalogued = {metric.tag: metric for metric in METRICS}
    for tag, spec in builtin(name).metrics.items():
        if tag in catalogued:
            mine = spec.metric(tag)
            assert (mine.unit, mine.reduction) == (catalogued[tag].unit, catalogued[tag].reduction), tag


def test_a_profile_of_ones_own_may_speak_of_what_the_catalogue_declares():
    found = parse(HEAD + METRIC + RULE.replace("train/mine/energy", "train/loss_total"), "mine.yaml")
    assert found.rules["too_hot"].metric == "train/loss_total"


def test_a_metric_without_a_unit_is_an_error_at_its_line():
    [(line, what)] = problems(HEAD + METRIC.replace("    unit: J\n", ""))
    assert line == 5
    assert "unit: is missing" in what
    assert 'write unit: "1"' in what


def test_an_empty_unit_is_an_error_that_names_the_one_to_write():
    [(line, what)] = problems(HEAD + METRIC.replace("unit: J", 'unit: ""'))
    assert line == 7
    assert 'write unit: "1"' in what


def test_the_unit_one_is_stored_as_none():
    found = parse(HEAD + METRIC.replace("unit: J", 'unit: "1"'), "mine.yaml")
    assert found.metrics["train/mine/energy"].metric("train/mine/energy").unit == ""


def test_an_unknown_key_is_an_error_that_tells_the_known_ones():
    [(line, what)] = problems(HEAD + METRIC.replace("    tier: step\n", "    tier: step\n    tear: step\n"))
    assert line == 9
    assert "unknown key; known here: target, worry, name, unit" in what


def test_a_rule_on_a_metric_nobody_declares_is_an_error():
    [(line, what)] = problems(HEAD + METRIC + RULE.replace("train/mine/energy", "train/mine/entropy"))
    assert line == 14
    assert "nobody declares a metric 'train/mine/entropy'" in what


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("above: 10\n    clear: 20", "clear lies beyond"),
        ("above: 10\n    for: {steps: 8, of: 5}", "8 of 5 can never be"),
        ("above: 10\n    for: {epochs: 2}", "a rule over step is held for steps"),
        ("above: 10\n    to: train/lr", "and no other, needs `to`"),
        ("above: high", "valid number"),
        ("above: 10\n    gain: 2", "of a plateau rule, and of no other"),
        ("above: 10\n    form: plateau", "goes `over: epoch`"),
        ("above: 10\n    below: 1\n    form: plateau\n    over: epoch", "either above or below"),
        ("above: 10\n    form: plateau\n    over: epoch\n    gain: -1", "greater than or equal to 0"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_an_error(given, said):
    text = RULE if "form" not in given else RULE.replace("    form: threshold\n", "")
    [(line, what)] = problems(HEAD + METRIC + text.replace("above: 10", given))
    assert line >= 12
    assert said in what


def test_a_message_that_cannot_be_filled_in_is_an_error():
    [(line, what)] = problems(HEAD + METRIC + RULE.replace("{value:g} is", "{valve:g} is"))
    assert line == 16
    assert "it may name subject, metric, value, threshold, step" in what


def test_all_errors_are_told_at_once_in_the_order_of_lines():
    wrong = problems(
        HEAD + METRIC.replace("    unit: J\n", "    color: red\n") + RULE.replace("above: 10", "") + "x: 1\n"
    )
    assert [line for line, _ in wrong] == sorted(line for line, _ in wrong)
    assert len(wrong) == 4


def test_what_is_said_twice_is_an_error():
    [(line, what)] = problems(HEAD + "title: Again\n")
    assert (line, what) == (4, "'title' stands here a second time")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "a: &a [*a]", "\x00"])
def test_what_is_no_profile_at_all_is_an_error_and_not_a_crash(text):
    assert problems(text)


def test_aliases_of_aliases_do_not_grow_without_bound():
    layers = "".join(f"x{at}: &x{at} [{', '.join([f'*x{at - 1}'] * 9)}]\n" for at in range(1, 9))
    assert "more than" in problems("x0: &x0 [1, 2, 3]\n" + layers)[0][1]


def test_an_exact_tag_goes_before_a_family():
    words = vocabulary(builtin(COMMON))
    assert words.find("train/gradients/global_norm").declared.metric.tag == "train/gradients/global_norm"
    assert words.find("train/gradients/head").declared.metric.tag == "train/gradients/<block>"
    assert words.find("train/gradients/head").subject == "head"
    assert words.find("my/own") is None


def test_a_placeholder_may_stand_within_a_part():
    match = vocabulary(builtin("jepa")).find("train/collapse/level2_effective_rank")
    assert (match.subject, match.declared.metric.unit) == ("2", "dimensions")


def test_a_profile_is_suggested_by_the_tags_of_a_run():
    assert suggested(["train/loss/h0", "train/masking/mask_ratio", "val/acc"])[0] == "jepa"
    assert suggested(["train/loss_total"]) == []


def test_a_run_goes_by_the_profile_it_names_or_ships():
    choices = Choices()
    choices.note("a", {"profile": "jepa"})
    choices.note("b", {"profile": "mine", "profile_text": HEAD + METRIC})
    assert choices.of("a").own.name == "jepa"
    assert choices.of("b").vocabulary.find("train/mine/energy").declared.metric.unit == "J"
    assert choices.of("c").own is None


def test_a_run_whose_profile_cannot_be_used_goes_by_the_common_part(capsys):
    choices = Choices()
    choices.note("a", {"profile": "jebba"})
    choices.note("b", {"profile": "mine", "profile_text": "metrics: 3"})
    assert choices.of("a").own is None
    assert choices.of("b").own is None
    said = capsys.readouterr().out
    assert "there is no profile 'jebba'; there are backward, classification" in said
    assert "mine.yaml:1" in said


def test_lint_tells_lines_and_ends_with_1(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + METRIC.replace("    unit: J\n", ""), encoding="utf-8")
    done = CliRunner().invoke(command, ["lint", str(path)])
    assert done.exit_code == 1
    assert f"{path}:5: metrics ▸ train/mine/energy ▸ unit: is missing" in done.output


def test_lint_of_what_is_right_ends_with_0(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + METRIC, encoding="utf-8")
    assert json.loads(call(command, "lint", path, "--json")) == []


def test_lint_of_no_file_says_so(tmp_path):
    done = CliRunner().invoke(command, ["lint", str(tmp_path / "none.yaml")])
    assert isinstance(done.exception, ProfileError)
    assert done.exception.exit_code == 2


def test_list_and_show_give_every_profile():
    listed = json.loads(call(command, "list", "--json"))
    assert [row["profile"] for row in listed] == [COMMON, *names()]
    shown = call(command, "show", "jepa")
    assert "train/collapse/level<k>_effective_rank" in shown
    assert "playbook collapse: Features collapse" in shown
    document = json.loads(call(command, "show", "jepa", "--json"))
    assert document["rules"]["collapse_effective_rank"]["for"] == {"steps": 8, "epochs": None, "of": 10}


@pytest.mark.parametrize("model", [Profile, MetricSpec, RuleSpec, Chart, Playbook, Step, Override])
def test_every_key_is_documented(model):
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_the_profile_in_the_documentation_is_right():
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    text = page.split("```yaml\n")[1].split("```")[0]
    assert problems(text) == []
    assert parse(text, "mine.yaml").rules["too_hot"].held.window == 10
