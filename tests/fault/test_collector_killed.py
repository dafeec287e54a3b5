"""The collector is killed again and again under load: every record is stored once, and every file says the same."""

import json
import os
import random
import shutil
import signal
import sys

import numpy as np
import pytest
from support.place import ended, said, tell, tensorboard_points, until

from sidestep import launch

EPOCHS = 3

#: After each part it waits until it is told to go on, so that the load outlasts the kills.
LOADS = """
import sys, time, sidestep
name, records, kills, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
run = sidestep.init(id=name)
step = 0
for epoch in run.epoch(range(3)):
    for _ in range(records // 3):
        if step % (records // (kills + 1)) == 0:
            sys.stdin.readline()
        run.log({"loss": 1 / (1 + step), "acc": step / records, "nan": float("nan") if step % 7 == 0 else step})
        if step % 10 == 0:
            run.histogram("weights", counts=[step, 1], edges=[0, 1, 2])
        step += 1
        time.sleep(pause)
report = run.finish(timeout=0.5)
assert report.lost == 0, report
"""


@pytest.mark.parametrize(
    ("runs", "records", "kills", "pause"),
    [
        pytest.param(2, 1500, 5, 0.002, id="five times under two runs"),
        pytest.param(4, 12600, 20, 0.0007, id="twenty times under four runs"),
    ],
)
def test_a_collector_that_is_killed_again_and_again_stores_every_record_once(place, runs, records, kills, pause):
    chance = random.Random(5)
    names = [f"run{number}" for number in range(runs)]
    place.up("--flush-seconds", "0.1")
    processes = [place.script(LOADS, name, str(records), str(kills), str(pause)) for name in names]
    for _ in range(kills):
        for process in processes:
            tell(process)
        goal = chance.randint(1, runs * records // (kills + 1) - 50)  # records of this part, behind which it is killed
        until(lambda goal=goal: place.counters()["records"] >= goal)
        place.kill_collector()
        place.up("--flush-seconds", "0.1")
    for process in processes:
        tell(process)
    for process in processes:
        ended(process)
    until(lambda: not place.journals())
    place.down()
    for name in names:
        check(place, name, records)


def check(place, name, records):
    place.check_whole(name, key_sets=1)
    loss = [1 / (1 + step) for step in range(records)]
    assert place.values(name, "train/loss") == list(enumerate(loss))
    odd = [float("nan") if step % 7 == 0 else float(step) for step in range(records)]
    np.testing.assert_equal([value for _, value in place.values(name, "train/nan")], odd)
    histograms = place.rows("select step, counts from histograms where run = ? order by step", name)
    assert histograms == [(step, [float(step), 1.0]) for step in range(0, records, 10)]
    size = records // EPOCHS
    for epoch in range(EPOCHS):
        part = slice(epoch * size, (epoch + 1) * size)
        statistics = place.document(name, epoch)["metrics"]
        assert statistics["train/loss"]["n"] == size
        assert statistics["train/loss"]["mean"] == pytest.approx(np.mean(loss[part]), rel=1e-12)
        assert statistics["train/loss"]["std"] == pytest.approx(np.std(loss[part], ddof=1), rel=1e-9)
        assert (statistics["train/loss"]["min"], statistics["train/loss"]["max"]) == (min(loss[part]), max(loss[part]))
        assert statistics["train/loss"]["last"] == loss[part][-1]
        bad = int(np.isnan(odd[part]).sum())
        assert (statistics["train/nan"]["n"], statistics["train/nan"]["n_nonfinite"]) == (size - bad, bad)
        stored = place.row("select n, mean from epochs where (run, metric, epoch) = (?, 'train/loss', ?)", name, epoch)
        assert stored == (size, pytest.approx(np.mean(loss[part]), rel=1e-12))
    shown = [(step, value) for tag, step, value in tensorboard_points(place.tensorboard(name)) if tag == "train/loss"]
    assert shown == [(step, float(np.float32(value))) for step, value in enumerate(loss)]


def test_training_ends_normally_when_the_collector_beside_it_is_killed(place):
    script = place.written("""
        import sys, sidestep
        run = sidestep.init(id="x")
        for step in range(10): run.log({"loss": step})
        assert run.flush(30)
        print("flushed", flush=True)
        sys.stdin.readline()
        for step in range(10, 500): run.log({"loss": step})
        print("end", run.finish(timeout=0.2).pending > 0, flush=True)
    """)
    process = place.start(sys.executable, "-m", "sidestep", "run", "--", sys.executable, str(script))
    said(process, "flushed")
    place.kill_collector()
    tell(process)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "wait" in errors  # the summary says that a journal waits, and how it is delivered
    assert place.stored("x") < 503
    place.up()
    until(lambda: place.stored("x") == 503)
    place.check_whole("x", key_sets=1)
    assert place.values("x", "train/loss") == [(step, float(step)) for step in range(500)]


def test_a_collector_that_is_killed_while_it_starts_leaves_a_folder_that_another_can_take(place):
    place.up()
    place.train("import sidestep; sidestep.init(id='x').log({'a': 1})")
    place.down()
    for _ in range(3):
        process = place.start(sys.executable, "-m", "sidestep_collector")
        until(lambda: launch.is_locked(place.root))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    place.up()
    assert place.values("x", "train/a") == [(0, 1.0)]


def test_a_store_that_was_thrown_away_has_gaps_with_reasons_for_what_it_will_never_get(place):
    place.up("--flush-seconds", "0.1")
    process = place.script("""
        import sys, sidestep
        run = sidestep.init(id="x")
        def log(first, last):
            for step in range(first, last): run.log({f"m{number}": step for number in range(50)})
        log(0, 10_000)
        assert run.flush(60)
        print("stored", flush=True)
        sys.stdin.readline()
        log(10_000, 11_000)
        report = run.finish(timeout=60)
        assert report.pending == 0, report
    """)
    said(process, "stored")
    place.kill_collector()
    shutil.rmtree(place.root / "store")
    place.up("--flush-seconds", "0.1")
    tell(process)
    ended(process)
    # What tells the values' names was acknowledged as well, so records that refer to it are of no use any more.
    gaps = place.rows("select first_seq, records, reason from gaps order by first_seq")
    assert gaps[0][0] == 0
    assert "acknowledged by a collector whose store this one does not have" in gaps[0][2]
    assert all("did not declare" in reason for *_, reason in gaps[1:])
    assert place.row("select watermark, lost from ingest") == (11_003, sum(records for _, records, _ in gaps))


EPOCHS_OF_PERIODS = """
import sys, sidestep
run = sidestep.init(id=sys.argv[1], diagnostics={"every_n_epochs": 4})
for epoch in run.epoch(range(1, 13)):
    if epoch in (3, 5, 9):
        run.flush(60)
        print("stored", epoch, flush=True)
        sys.stdin.readline()
    for batch in range(10):
        run.log({"loss": 2.0**batch / epoch, "seen": epoch})
assert run.finish(timeout=60).complete
"""


def test_periods_say_the_same_when_the_collector_is_killed_within_them_and_between_two(place):
    place.up("--flush-seconds", "0.1")
    whole, killed = (place.script(EPOCHS_OF_PERIODS, name) for name in ("whole", "killed"))
    for epoch in (3, 5, 9):
        said(whole, f"stored {epoch}")
        tell(whole)
    ended(whole)
    for epoch in (3, 5, 9):
        said(killed, f"stored {epoch}")
        place.kill_collector()
        place.up("--flush-seconds", "0.1")
        tell(killed)
    ended(killed)
    place.down()
    folders = [place.root / "runs/default" / name / "diagnostics/periods" for name in ("whole", "killed")]
    names = [f"epochs_{first:03d}-{first + 3:03d}.json" for first in (1, 5, 9)]
    for folder in folders:
        assert sorted(file.name for file in folder.iterdir()) == names
    for name in names:
        expected, found = (json.loads((folder / name).read_text())["metrics"] for folder in folders)
        assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-12)
        assert found["train/seen"] == pytest.approx(expected["train/seen"], rel=1e-12)
        assert found["train/loss"]["n"] == 40
        assert found["perf/epoch_time_sec"]["n"] == 4
        assert found.keys() == expected.keys()
