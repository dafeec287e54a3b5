"""How a training ended is noticed and stored, whatever ended it; and that it hangs, and that it is back."""

import json
import os
import signal

import pytest
from support.commands import call
from support.place import said, until

from sidestep_collector.commands.runs import show

LOGS = """
import sys, time, sidestep, sidestep.push, sidestep.start
sidestep.push.ALIVE_SECONDS = 0.1
if "elsewhere" in sys.argv:
    sidestep.start.boot_id = lambda: b"another."
run = sidestep.init(id="dies")
for step in range(20):
    run.log({"loss": 1.0 - step * 0.01})
    time.sleep(0.001)
print("logged", flush=True)
for line in sys.stdin:
    exec(line)
"""


def post_mortems(place):
    found = place.rows("select details from events where event = 'post_mortem' order by wall_time")
    return [json.loads(details) for (details,) in found]


def shown(place):
    return call(show, "dies", "--dir", place.root)


def the_post_mortem(place):
    until(lambda: post_mortems(place))
    [details] = post_mortems(place)
    return details


def ends_by(place, line, *arguments, options=(), **more):
    place.up("--flush-seconds", "0.1", *options)
    process = place.script(LOGS, *arguments, **more)
    said(process, "logged")
    until(lambda: place.rows("select * from ingest join runs using (run_uid) where run = 'dies' and watermark = 22"))
    if line is not None:
        process.communicate(line)
    return process


def check_last(details):
    assert (details["step"], details["loss"]) == (19, pytest.approx(0.81))
    assert details["seconds_since_last_record"] >= 0
    [rank] = details["ranks"]
    assert (rank["rank"], rank["step"]) == (0, 19)


def test_an_exception_is_a_post_mortem_with_its_last_lines(place):
    process = ends_by(place, "raise ValueError('too bad')\n")
    assert process.returncode == 1
    details = the_post_mortem(place)
    assert (details["cause"], details["exception"], details["error"]) == ("failed", "ValueError", "ValueError: too bad")
    assert details["traceback"].endswith("ValueError: too bad")
    check_last(details)
    text = shown(place)
    assert "it failed: ValueError: too bad" in text
    assert "exec(line)" in text
    assert "last step 19, loss 0.81" in text


def test_an_exit_code_is_a_failure_with_the_code(place):
    process = ends_by(place, "sys.exit(3)\n")
    assert process.returncode == 3
    details = the_post_mortem(place)
    assert (details["cause"], details["exit_code"]) == ("failed", 3)
    assert place.row("select state from runs") == ("failed",)
    assert "exit code 3" in shown(place)


def test_a_training_that_ends_well_has_no_post_mortem(place):
    assert ends_by(place, "").returncode == 0
    until(lambda: place.rows("select * from runs where state = 'finished'"))
    assert post_mortems(place) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_signal_is_told_apart_where_it_leaves_a_trace(place, name):
    process = ends_by(place, None)
    process.send_signal(getattr(signal, name))
    details = the_post_mortem(place)
    assert details["cause"] == "killed"
    assert details.get("signal") == ("SIGTERM" if name == "SIGTERM" else None)
    check_last(details)
    assert place.row("select state from runs") == ("killed",)
    place.check_whole("dies", key_sets=1)
    assert ("SIGTERM" if name == "SIGTERM" else "killed without a word") in shown(place)


def test_a_process_that_died_and_left_no_journal_was_killed(place):
    place.up("--flush-seconds", "0.1", "--silent-seconds", "1", "--no-take-leftovers")
    process = place.script(LOGS)
    said(process, "logged")
    until(lambda: place.rows("select * from ingest where watermark = 22"))
    process.kill()
    process.wait()
    details = the_post_mortem(place)
    assert (details["cause"], place.row("select state from runs")) == ("killed", ("killed",))
    assert details["silent_seconds"] >= 1


def test_a_host_that_falls_silent_is_lost_and_running_again_when_it_speaks(place):
    process = ends_by(place, None, "elsewhere", options=("--silent-seconds", "4", "--no-take-leftovers"))
    process.send_signal(signal.SIGSTOP)
    until(lambda: place.rows("select * from runs where state = 'lost'"))
    details = the_post_mortem(place)
    assert details["cause"] == "lost"
    check_last(details)
    assert place.status()["streams"][0]["state"] == "lost"
    assert "it fell silent" in shown(place)
    process.send_signal(signal.SIGCONT)
    until(lambda: place.rows("select * from runs where state = 'running'"))
    assert place.row("select cause, ended from attempts") == (None, None)
    until(lambda: place.rows("select * from events where event = 'heard_again'"))
    process.communicate("")
    until(lambda: place.rows("select * from runs where state = 'finished'"))
    place.check_whole("dies", key_sets=1)


def test_a_collector_that_starts_again_tells_of_one_that_is_lost_no_second_time(place):
    options = ("--flush-seconds", "0.1", "--silent-seconds", "3", "--no-take-leftovers")
    process = ends_by(place, None, "elsewhere", options=options[2:])
    process.send_signal(signal.SIGSTOP)
    until(lambda: place.rows("select * from runs where state = 'lost'"))
    place.kill_collector()
    place.up(*options)
    other = place.script(LOGS.replace("dies", "other"), "elsewhere")
    said(other, "logged")
    until(lambda: place.stored("other") == 22)
    other.send_signal(signal.SIGSTOP)
    until(lambda: place.rows("select * from runs where run = 'other' and state = 'lost'"))
    assert len(post_mortems(place)) == 2


def test_a_training_that_speaks_but_does_not_step_hangs_once_and_shows_its_stacks(place):
    options = ("--silent-seconds", "30", "--hang-seconds", "1")
    asked = {"SIDESTEP_STACKS_ON_HANG": "1", "SIDESTEP_HANG_SECONDS": "1"}
    process = ends_by(place, None, options=options, **asked)
    [(step, details)] = until(lambda: place.rows("select step, details from events where event = 'hang'"))
    hang = json.loads(details)
    assert (step, hang["step"], hang["heartbeats"]) == (19, 19, True)
    assert hang["seconds"] >= 1  # longer, but it is told in tenths
    [(text,)] = until(lambda: place.rows("select text from texts where name = 'system/stacks'"))
    assert "for line in sys.stdin" in text
    told = shown(place)
    assert "no step for" in told
    assert "for line in sys.stdin" in told
    assert place.status()["streams"][0]["state"] == "hanging"
    process.stdin.write('run.log({"loss": 0.1})\n')
    process.stdin.flush()
    until(lambda: place.rows("select * from events where event = 'hang_over'"))
    process.communicate("")
    until(lambda: place.rows("select * from runs where state = 'finished'"))
    assert place.rows("select count(*) from events where event = 'hang'") == [(1,)]


def test_a_process_that_stands_still_on_this_host_hangs_and_is_not_lost(place):
    process = ends_by(place, None, options=("--silent-seconds", "0.5", "--hang-seconds", "5"))
    process.send_signal(signal.SIGSTOP)  # well before the hang: nothing is heard when that is told
    [(details,)] = until(lambda: place.rows("select details from events where event = 'hang'"))
    assert json.loads(details)["heartbeats"] is False
    assert place.row("select state from runs") == ("running",)
    assert post_mortems(place) == []
    os.kill(process.pid, signal.SIGCONT)
    process.communicate("")
    until(lambda: place.rows("select * from runs where state = 'finished'"))
