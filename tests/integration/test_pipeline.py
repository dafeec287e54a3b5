"""From a script to the store, over real sockets: resumes, clocks, offline journals, live metrics."""

import json

from support.place import ended, free_ports, said, tell, tensorboard_points

COUNTS = """
import sys, sidestep
run = sidestep.init(id="same", resume="auto")
first, last, factor = map(int, sys.argv[1:])
for step in range(first, last):
    run.log({"loss": float(step * factor)}, step=step)
assert run.finish(timeout=30).complete
"""


def test_the_same_id_again_is_the_next_attempt_and_current_points_prefer_it(place):
    place.up()
    place.train(COUNTS, "0", "30", "1")
    place.train(COUNTS, "20", "40", "2")
    assert place.values("same", "train/loss", 0) == [(step, float(step)) for step in range(30)]
    assert place.values("same", "train/loss", 1) == [(step, 2.0 * step) for step in range(20, 40)]
    current = place.rows("select step, value from points_current where metric = 'train/loss' order by step")
    assert current == [(step, float(step if step < 20 else 2 * step)) for step in range(40)]
    place.check_whole("same", attempts=2, key_sets=1)
    assert place.rows("select attempt, start_step, cause from attempts order by attempt") == [
        (0, 0, "finished"),
        (1, 20, "finished"),
    ]
    for attempt, count in ((0, 30), (1, 20)):
        shown = [point for point in tensorboard_points(place.tensorboard("same", attempt)) if point[0] == "train/loss"]
        assert len(shown) == count


def test_a_resume_after_the_collector_started_anew_is_the_next_attempt(place):
    place.up()
    place.train(COUNTS, "0", "10", "1")
    place.down()
    place.up()
    place.train(COUNTS, "10", "20", "1")
    place.check_whole("same", attempts=2, key_sets=1)


def test_an_offline_journal_is_shipped_by_sync_and_a_second_sync_finds_nothing(place):
    place.train(
        """
        import sidestep
        run = sidestep.init(id="far", mode="offline", config={"a": 1})
        for epoch in run.epoch(range(3)):
            for step in range(100): run.log({"loss": step / 7})
        report = run.finish()
        assert report.pending == report.sent and not report.lost, report
        """
    )
    assert place.collector() is None
    assert place.journals()
    done = place.sidestep("sync", str(place.root), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["streams"], report["records"], report["pending_streams"]) == (1, 309, 0)
    assert place.journals() == []
    again = json.loads(place.sidestep("sync", str(place.root), "--json").stdout)
    assert (again["streams"], again["records"]) == (0, 0)
    place.check_whole("far", key_sets=1)
    assert [value for _, value in place.values("far", "train/loss")] == [step / 7 for step in range(100)] * 3
    assert place.row("select state from runs") == ("finished",)
    assert place.document("far", 2)["metrics"]["train/loss"]["n"] == 100


def test_sync_without_a_collector_fails_with_one_line_and_keeps_the_journal(place, tmp_path):
    place.train("import sidestep; sidestep.init(id='far', mode='offline').log({'a': 1})")
    before = place.journals()
    done = place.sidestep("sync", str(place.root), "--collector", f"ipc://{tmp_path}/none", "--timeout", "0.5")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "no collector at ipc://" in line
    assert place.journals() == before
    assert place.sidestep("sync", str(place.root)).returncode == 0
    assert place.values("far", "train/a") == [(0, 1.0)]


def test_a_clock_that_jumps_back_loses_no_row(place):
    place.up()
    place.train(
        """
        import time
        real = time.time_ns
        time.time_ns = lambda: real() - int(offset * 1e9)
        offset = 0
        import sidestep
        run = sidestep.init(id="jumps")
        for epoch in run.epoch(range(2)):
            for step in range(50):
                offset = 86400 * 400 if step % 2 else 0
                run.log({"loss": step * 1.5})
        offset = 4e9
        assert run.finish(timeout=30).complete
        """
    )
    place.check_whole("jumps", key_sets=1)
    assert [value for _, value in place.values("jumps", "train/loss")] == [step * 1.5 for step in range(50)] * 2
    assert place.document("jumps", 1)["wall_time_sec"] >= 0
    assert place.row("select state from runs") == ("finished",)


def test_records_travel_over_tcp_as_well(place):
    address = f"tcp://127.0.0.1:{free_ports()}"
    assert place.up("--listen", address)["address"] == address
    place.train(COUNTS, "0", "50", "1")
    assert place.values("same", "train/loss") == [(step, float(step)) for step in range(50)]


def test_what_is_bigger_than_a_range_arrives_as_it_was(place):
    place.up()
    place.train(
        """
        import numpy as np, sidestep
        run = sidestep.init(id="big")
        run.tensor("large", np.arange(1_500_000, dtype=np.float64))
        run.log({f"m{number}": number for number in range(2000)})
        run.text("long", "x" * 1_000_000)
        assert run.finish(timeout=60).complete
        """
    )
    assert place.row("select octet_length(data), shape from tensors") == (12_000_000, [1_500_000])
    assert place.row("select count(*), sum(value) from points") == (2000, 1999 * 1000.0)
    assert place.row("select length(text) from texts") == (1_000_000,)


def test_flush_waits_for_the_store_and_what_it_waited_for_is_there(place):
    place.up("--flush-seconds", "0.1")
    process = place.script(
        """
        import sys, sidestep
        run = sidestep.init(id="f")
        for step in range(5):
            run.log({"loss": step})
            assert run.flush(30)
            print("flushed", run.stats["committed"], flush=True)
            sys.stdin.readline()
        """
    )
    for step in range(5):
        committed = int(said(process, "flushed").split()[1])
        assert place.stored("f") == committed == step + 3
        assert len(place.values("f", "train/loss")) == step + 1
        tell(process)
    ended(process)


def test_two_projects_may_use_the_same_id(place):
    place.up()
    for project in ("one", "two"):
        place.train(f"import sidestep; sidestep.init('{project}', id='x').log({{'p': {len(project)}}})")
    found = place.rows("select project, state from runs order by project")
    assert found == [("one", "finished"), ("two", "finished")]
    assert (place.root / "runs/one/x").is_dir()
