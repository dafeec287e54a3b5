"""The training process is killed: what log() returned for is stored, without anybody asking for it."""

import os
import signal

from support.place import said, tensorboard_points, until

LOGS_UNTIL_KILLED = """
import sys, sidestep
run = sidestep.init(id="dies")
step = 0
with run.epoch(1):
    while True:
        run.log({"loss": step * 0.25, "other": -step})
        print("logged", step, flush=True)
        step += 1
"""


def last_said(process, before):
    """The last step that it said before it died; what it was saying when it died does not count."""
    lines = [before + "\n", *process.stdout]
    process.wait()
    return max(int(line.split()[1]) for line in lines if line.endswith("\n"))


def check_dead(place, last, state="killed"):
    until(lambda: place.rows("select * from runs where state = ?", state))
    found = place.values("dies", "train/loss")
    assert found == [(step, step * 0.25) for step in range(len(found))]
    assert len(found) - 1 in (last, last + 1)  # it may have logged one more than it came to say
    assert place.rows("select cause from attempts") == [(state,)]
    until(lambda: not place.journals())
    place.check_whole("dies", key_sets=1)


def test_the_collector_notices_by_itself_and_ships_what_the_journal_holds(place):
    place.up()
    process = place.script(LOGS_UNTIL_KILLED)
    line = said(process, "logged 500")
    process.send_signal(signal.SIGKILL)
    last = last_said(process, line)
    check_dead(place, last)
    assert place.document("dies", 1)["metrics"]["train/loss"]["n"] == len(place.values("dies", "train/loss"))


def test_a_trainer_that_is_killed_while_the_collector_stands_still_loses_nothing(place):
    pid = place.up()["pid"]
    process = place.script(LOGS_UNTIL_KILLED)
    said(process, "logged 20")
    os.kill(pid, signal.SIGSTOP)
    line = said(process, "logged 3000")
    process.send_signal(signal.SIGKILL)
    last = last_said(process, line)
    os.kill(pid, signal.SIGCONT)
    check_dead(place, last)


def test_a_trainer_and_its_collector_that_are_killed_together_lose_nothing(place):
    place.up()
    process = place.script(LOGS_UNTIL_KILLED)
    line = said(process, "logged 1000")
    place.kill_collector()
    process.send_signal(signal.SIGKILL)
    last = last_said(process, line)
    place.up()
    check_dead(place, last)
    points = [(tag, step) for tag, step, _ in tensorboard_points(place.tensorboard("dies"))]
    assert len(points) == len(set(points))


def test_a_run_that_is_killed_and_resumed_goes_on_in_the_next_attempt(place):
    place.up()
    process = place.script(LOGS_UNTIL_KILLED)
    line = said(process, "logged 50")
    process.send_signal(signal.SIGKILL)
    last = last_said(process, line)
    place.train("import sidestep; sidestep.init(id='dies').log({'loss': 7.0}, step=20)")
    until(lambda: place.rows("select * from attempts where attempt = 0 and cause = 'killed'"))
    assert place.rows("select attempt, cause from attempts order by attempt") == [(0, "killed"), (1, "finished")]
    assert place.row("select state from runs") == ("finished",)  # as its last attempt ended
    assert len(place.values("dies", "train/loss", 0)) >= last + 1
    assert place.row("select value from points_current where metric = 'train/loss' and step = 20") == (7.0,)
    place.check_whole("dies", attempts=2, key_sets=1)
