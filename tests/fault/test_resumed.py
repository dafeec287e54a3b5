"""A job that is put back into the queue, steps that come again, clocks that jump: all is kept, and the latest is shown."""

import signal
from itertools import pairwise

import pytest
from support.place import said, until

LOGS = """
import sys, sidestep
run = sidestep.init()
first = int(sys.argv[1])
for step in range(first, first + 100):
    run.log({"loss": step + (1000.0 if first else 0.0)}, step=step)
print("logged", flush=True)
if not first:
    sys.stdin.readline()
run.finish(timeout=60)
"""
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "job", "RANK": "0", "WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("environ", "again"),
    [
        (SLURM, {"SLURM_RESTART_COUNT": "1"}),
        (TORCHRUN, {"TORCHELASTIC_RESTART_COUNT": "1"}),
    ],
    ids=["slurm", "torchrun"],
)
def test_a_job_that_begins_again_is_the_next_attempt_of_its_run(place, environ, again):
    place.up("--flush-seconds", "0.1")
    first = place.script(LOGS, "0", **environ)
    said(first, "logged")
    first.send_signal(signal.SIGKILL)
    first.wait()
    place.train(LOGS, "60", **environ, **again)
    until(lambda: place.rows("select * from attempts where attempt = 0 and cause = 'killed'"))
    [(run,)] = place.rows("select run from runs")
    assert place.rows("select attempt, cause from attempts order by attempt") == [(0, "killed"), (1, "finished")]
    assert place.values(run, "train/loss", 0) == [(step, float(step)) for step in range(100)]
    current = place.rows("select step, value from points_current where metric = 'train/loss' order by step")
    assert current == [(step, step + (1000.0 if step >= 60 else 0.0)) for step in range(160)]
    place.check_whole(run, attempts=2, key_sets=1)


def test_steps_that_come_again_or_out_of_order_and_a_clock_that_jumps_are_kept(place):
    place.up()
    place.train("""
        import time
        import sidestep
        real, jump = time.time_ns, 0
        time.time_ns = lambda: real() + jump
        run = sidestep.init(id="odd")
        for at, step in enumerate([0, 1, 2, 1, 2, 3, 9, 4]):
            jump = [0, 3600, -7200][at % 3] * 10**9
            run.log({"loss": float(at)}, step=step)
        assert run.finish(timeout=60).complete
    """)
    found = place.rows("select step, value from points where metric = 'train/loss' order by value")
    assert found == [(0, 0.0), (1, 1.0), (2, 2.0), (1, 3.0), (2, 4.0), (3, 5.0), (9, 6.0), (4, 7.0)]
    current = place.rows("select step, value from points_current where metric = 'train/loss' order by value")
    assert current == found  # of one attempt, each time a step was logged
    times = [at for (at,) in place.rows("select epoch_us(wall_time) from snapshots where tier = 'step' order by seq")]
    jumps = [after - before for before, after in pairwise(times)]
    assert max(jumps) > 3_000_000_000
    assert min(jumps) < -3_000_000_000
    assert place.row("select watermark, lost from ingest") == (11, 0)
