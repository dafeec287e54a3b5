"""Findings, from a training script through a real collector to where people look."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.judged import HEAD, METRICS, rule
from support.place import ended, said, tell, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits.py"
FINDINGS = "select rule, subject, state, severity, count, first_step, last_step from findings where run = ?"

LOGGER = """
    import sys
    import sidestep

    run = sidestep.init(id="r", profile=sys.argv[1])
    for step in range(5):
        run.log({"heat": 11.0 + step}, split="mine", step=step)
    run.flush()
    print("half", flush=True)
    sys.stdin.readline()
    for step in range(5, 10):
        run.log({"heat": 11.0 + step}, split="mine", step=step)
    print(run.finish(timeout=30), flush=True)
"""


def profile(place, *rules: str) -> str:
    path = place.root.parent / "mine.yaml"
    path.write_text(HEAD + METRICS + "rules:\n" + "".join(rules), encoding="utf-8")
    return str(path)


def test_a_learning_rate_that_is_too_high_is_found_and_a_good_one_is_left_in_peace(place):
    place.up()
    for name, rate in (("good", "3e-3"), ("wild", "3.0")):
        ended(place.start(sys.executable, str(DIGITS), "--epochs", "5", "--lr", rate, SIDESTEP_RUN_ID=name))
    assert place.rows(FINDINGS, "good") == []
    found = {row[0]: row for row in place.rows(FINDINGS + " and state <> 'pending'", "wild")}
    assert "unstable_update" in found
    assert found["unstable_update"][3] == "warning"
    shown = place.sidestep("show", "wild")
    assert "the weights change by" in shown.stdout
    document = json.loads(place.sidestep("show", "wild", "--json").stdout)
    [one] = [row for row in document["findings"] if row["finding"].startswith("unstable_update@")]
    assert one["advice"][0] == "lower the learning rate to a third of what it is"
    events = EventAccumulator(str(place.tensorboard("wild", project="digits"))).Reload()
    [text, *_] = events.Tensors("findings/unstable_update")
    assert b"lower the learning rate" in text.tensor_proto.string_val[0]


def test_a_finding_goes_on_where_it_was_after_the_collector_was_killed(place):
    path = profile(place, rule(above=10, clear=5, **{"for": "{steps: 8, of: 10}"}))
    place.up()
    script = place.script(LOGGER, path)
    said(script, "half")
    [(*_, state, severity, count, first, last)] = place.rows(FINDINGS, "r")
    assert (state, severity, count, first) == ("pending", "warning", 0, 0)
    place.kill_collector()
    place.up()
    tell(script)
    ended(script)
    assert place.rows(FINDINGS, "r") == [("hot", "", "firing", "warning", 3, 0, 9)]


def test_an_open_finding_stays_the_same_one_after_the_collector_was_killed(place):
    path = profile(place, rule(above=10))
    place.up()
    script = place.script(LOGGER, path)
    said(script, "half")
    assert place.rows(FINDINGS, "r") == [("hot", "", "firing", "warning", 5, 0, 4)]
    place.kill_collector()
    place.up()
    tell(script)
    ended(script)
    assert place.rows(FINDINGS, "r") == [("hot", "", "firing", "warning", 10, 0, 9)]


def test_a_rule_is_set_otherwise_by_the_collectors_settings(place):
    path = profile(place, rule(above=10))
    place.root.mkdir(exist_ok=True)
    (place.root / "sidestep.toml").write_text("[collector.rules]\nhot = { above = 13 }\n", encoding="utf-8")
    place.up()
    script = place.script(LOGGER, path)
    said(script, "half")
    tell(script)
    ended(script)
    assert place.rows(FINDINGS, "r") == [("hot", "", "firing", "warning", 7, 3, 9)]


def test_a_profile_is_suggested_to_a_run_without_one_and_a_metric_has_the_unit_of_its_profile(place):
    place.up()
    script = """
        import sidestep
        run = sidestep.init(id={id!r}, profile={profile!r})
        run.log({{"train/collapse/level0_effective_rank": 300.0}})
        run.finish(timeout=30)
    """
    place.train(script.format(id="told", profile="jepa"))
    place.train(script.format(id="plain", profile=None))
    assert json.loads(place.sidestep("show", "plain", "--json").stdout)["suggested_profiles"] == ["jepa"]
    assert json.loads(place.sidestep("show", "told", "--json").stdout)["suggested_profiles"] == []
    assert place.row("select profile from runs where run = 'told'") == ("jepa",)
    assert place.row("select unit, name from metrics where metric like '%rank'") == ("dimensions", "effective rank")


SWINGS = """
    import sys
    import sidestep

    run = sidestep.init(id="r", profile=sys.argv[1])
    print("ready", flush=True)
    for step, line in enumerate(sys.stdin):
        if line.strip() == "end":
            break
        run.log({"heat": 20.0 if step % 2 else 1.0}, split="mine", step=1000 * step)
    run.finish(timeout=30)
"""


def test_a_watcher_hears_of_findings_as_they_come(place):
    place.up("--flush-seconds", "0.05")
    script = place.script(SWINGS, profile(place, rule(above=10)))
    said(script, "ready")
    until(lambda: place.status()["streams"])
    tail = place.start(sys.executable, "-m", "sidestep", "tail", "r", "--json", "--records", "200")

    def over():
        tell(script)
        return tail.poll() is not None

    until(over)
    heard = [json.loads(line) for line in tail.stdout.read().splitlines()]
    found = [record for record in heard if "finding" in record]
    assert {(record["rule"], record["news"]) for record in found} <= {("hot", "opened"), ("hot", "resolved")}
    assert found
    tell(script, "end")
    ended(script)
