"""Who finds whose collector: started by the first that needs it, shared by all that come later."""

import os
import sys
from pathlib import Path

from support.place import ended, said, tell, until

from sidestep import launch
from sidestep_schemas.layout import COLLECTOR_VARIABLE, default_address

#: Logs `count` values, waits until they are stored, says so, and ends when it is told.
LOGS = """
import sys, sidestep
name, count = sys.argv[1], int(sys.argv[2])
run = sidestep.init(id=name)
for step in range(count):
    run.log({"loss": step * 0.5})
assert run.flush(30)
print("stored", flush=True)
sys.stdin.readline()
run.finish(timeout=30)
"""


def expected(count):
    return [(step, step * 0.5) for step in range(count)]


def test_a_script_without_a_collector_starts_one_that_outlives_it_and_the_next_attaches_to_it(place):
    first = place.script(LOGS, "a", "50")
    said(first, "stored")
    collector = place.collector()
    assert os.getsid(collector.pid) == collector.pid  # detached: a Ctrl-C or a closed terminal does not reach it
    second = place.script(LOGS, "b", "70")
    said(second, "stored")
    streams = {stream["run"]: stream for stream in place.status()["streams"]}
    assert {name: stream["lag"] for name, stream in streams.items()} == {"a": 0, "b": 0}
    for process in (first, second):
        tell(process)
        ended(process)
    assert place.collector() == collector
    assert place.status()["pid"] == collector.pid
    place.down()
    assert place.values("a", "train/loss") == expected(50)
    assert place.values("b", "train/loss") == expected(70)


def test_twenty_processes_of_one_moment_share_one_collector_and_lose_nothing(place):
    script = place.written(LOGS)
    # Forked from one interpreter, so that twenty start-ups of Python are not what is waited for.
    place.train(
        """
        import os, runpy, sys
        script, runs, count = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        import sidestep
        children = []
        for number in range(runs):
            child = os.fork()
            if child == 0:
                sys.argv = [script, f"run{number}", count]
                code = 1
                try:
                    runpy.run_path(script)
                    code = 0
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            children.append(child)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
        """,
        *(str(script), "20", "30"),
    )
    assert launch.is_locked(place.root)
    place.down()
    for number in range(20):
        assert place.values(f"run{number}", "train/loss") == expected(30)
        place.check_whole(f"run{number}", key_sets=1)
    assert place.rows("select distinct state from runs") == [("finished",)]


def test_two_interpreters_with_the_same_id_at_once_are_two_attempts_and_both_are_whole(place):
    place.up()
    both = [place.script(LOGS, "same", count) for count in ("40", "60")]
    for process in both:
        said(process, "stored")
    for process in both:
        tell(process)
        ended(process)
    place.check_whole("same", attempts=2, key_sets=1)
    found = sorted(len(place.values("same", "train/loss", attempt)) for attempt in (0, 1))
    assert found == [40, 60]


def test_the_address_in_the_environment_is_taken_and_none_is_started(place, tmp_path):
    address = place.up()["address"]
    elsewhere = tmp_path / "elsewhere"
    process = place.script(LOGS, "a", "5", **{COLLECTOR_VARIABLE: address, "SIDESTEP_DIR": str(elsewhere)})
    said(process, "stored")
    tell(process)
    ended(process)
    assert not (elsewhere / "collector.lock").exists()
    assert place.values("a", "train/loss") == expected(5)


def test_a_collector_in_the_folder_is_not_known_by_what_a_killed_one_wrote(place):
    place.up()
    before = place.collector()
    place.kill_collector()
    assert (place.root / "collector.json").exists()
    assert place.collector() is None
    again = place.up()
    assert again["started"]
    assert again["pid"] != before.pid
    assert place.status()["pid"] == again["pid"]


def test_a_collector_that_a_script_started_ends_when_it_was_idle_for_long(place):
    trainer = place.script(LOGS, "a", "3", **{COLLECTOR_VARIABLE: default_address(place.root)})
    process = place.start(sys.executable, "-m", "sidestep_collector", "--idle-exit", "3")
    said(trainer, "stored")
    tell(trainer)
    ended(trainer)
    ended(process)
    assert not launch.is_locked(place.root)
    assert place.values("a", "train/loss") == expected(3)


def test_a_folder_on_another_path_has_an_address_of_its_own(place, tmp_path):
    from support.place import Place

    other = Place(tmp_path / "other")
    try:
        assert place.up()["address"] != other.up()["address"]
        assert Path(place.root) != Path(other.root)
        until(lambda: place.status() and other.status())
    finally:
        other.close()
