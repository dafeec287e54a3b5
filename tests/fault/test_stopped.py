"""The collector stands still, or is not there: logging goes on, and everything arrives later."""

import os
import signal

from support.place import ended, said, tell, until

IN_TWO_PARTS = """
import sys, sidestep
run = sidestep.init(id="goes-on")
def log(first, last):
    for step in range(first, last):
        run.log({"loss": step / 3})
log(0, 100)
print("first", flush=True)
sys.stdin.readline()
log(100, 20_000)
print("second", flush=True)
sys.stdin.readline()
report = run.finish(timeout=60)
print("complete", report.complete, report.committed, flush=True)
"""


def check(place, process):
    tell(process)
    assert said(process, "complete") == "complete True 20003"
    ended(process)
    assert place.values("goes-on", "train/loss") == [(step, step / 3) for step in range(20_000)]
    place.check_whole("goes-on", key_sets=1)


def test_logging_goes_on_while_the_collector_is_stopped_and_all_is_delivered_once_it_goes_on(place):
    pid = place.up()["pid"]
    process = place.script(IN_TWO_PARTS)
    said(process, "first")
    os.kill(pid, signal.SIGSTOP)
    tell(process)
    said(process, "second")
    os.kill(pid, signal.SIGCONT)
    check(place, process)


def test_logging_goes_on_while_there_is_no_collector_and_the_next_one_gets_all(place):
    place.up()
    process = place.script(IN_TWO_PARTS)
    said(process, "first")
    place.down()
    tell(process)
    said(process, "second")
    place.up()
    check(place, process)


def test_a_script_ends_in_time_when_the_collector_is_stopped_and_its_journal_waits(place):
    pid = place.up()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        place.train(
            """
            import sidestep
            run = sidestep.init(id="waits")
            for step in range(100): run.log({"loss": step})
            report = run.finish(timeout=0.2)
            assert report.pending == report.sent == 103 and report.lost == 0, report
            assert "sidestep sync" in str(report)
            """
        )
        assert place.journals()
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not place.journals() and place.rows("select * from runs where state = 'finished'"))
    place.check_whole("waits", key_sets=1)
