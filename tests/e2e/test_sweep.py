"""`sidestep sweep` as a user runs it: one command, one collector, and again where it was cut short."""

import json
import signal
import subprocess
import sys

from support.place import Place, until

SCRIPT = """
import os, sys, sidestep
lr, seed = (float(part.partition("=")[2]) for part in sys.argv[2:4])
run = sidestep.init(config={"lr": lr, "seed": seed})
for step in range(20):
    run.log({"loss_total": lr / (step + 1)})
report = run.finish()
assert report.lost == 0
if seed == 1 and not os.path.exists(sys.argv[1]):
    sys.exit(3)
"""


def sweep(tmp_path, *more, jobs=2):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    return [
        *(sys.executable, "-m", "sidestep", "sweep", "--dir", str(tmp_path / "data"), "--name", "rates"),
        *("--grid", "lr=0.1,0.2,0.3", "--grid", "seed=0..1", "--jobs", str(jobs), *more),
        *("--", sys.executable, str(script), str(tmp_path / "mended")),
    ]


def test_a_sweep_runs_every_setting_and_again_only_what_failed(tmp_path):
    place = Place(tmp_path / "data")
    first = subprocess.run(sweep(tmp_path, "--json"), capture_output=True, text=True, check=False)
    assert first.returncode == 1, first.stderr
    said = json.loads(first.stdout.splitlines()[-1])
    assert (said["jobs"], said["run_now"], said["failed"]) == (6, 6, 3)
    assert "exit code 3; its output:" in first.stderr

    (tmp_path / "mended").touch()
    second = subprocess.run(sweep(tmp_path), capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "6 jobs: 3 run now, 3 done before, 0 not done" in second.stdout
    assert "has room for" in second.stdout

    rows = place.rows(
        """select name, "group", state, config->>'lr', (select count(*) from points_current p where p.run = r.run
        and metric = 'train/loss_total') from runs r order by name"""
    )
    assert [row[0] for row in rows] == [f"lr={lr} seed={seed}" for lr in (0.1, 0.2, 0.3) for seed in (0, 1)]
    assert {row[1:3] + row[4:] for row in rows} == {("rates", "finished", 20)}


def test_an_interrupted_sweep_ends_its_jobs_and_can_be_taken_up_again(tmp_path):
    waiting = tmp_path / "waiting.py"
    waiting.write_text("import sys, time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    command = [
        *(sys.executable, "-m", "sidestep", "sweep", "--dir", str(tmp_path / "data"), "--name", "long"),
        *("--grid", "seed=0..3", "--jobs", "2", "--no-auto", "--", sys.executable, str(waiting)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = tmp_path / "data" / "sweeps" / "long"
    until(lambda: sum("begun" in log.read_text() for log in logs.glob("*.log")) == 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert (tmp_path / "data" / "sweeps" / "long.jsonl").read_text() == ""
    assert subprocess.run(["pgrep", "-f", str(waiting)], capture_output=True, check=False).stdout == b""


def test_a_dry_run_says_the_commands_and_starts_nothing(tmp_path):
    done = subprocess.run(sweep(tmp_path, "--dry-run"), capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all("--lr=" in line and "--seed=" in line for line in lines)
    assert not (tmp_path / "data").exists()
