"""The plan of a sweep, and what is remembered of it."""

import json

import pytest

from sidestep import sweep
from sidestep.sweep import Job, Ledger, Outcome
from sidestep_schemas.errors import FolderError, UsageError


def test_a_grid_makes_every_combination_once():
    jobs = sweep.plan("s", ["python", "t.py"], ["lr=0.1, 0.01", "seed=0..2"])
    assert [dict(job.settings) for job in jobs] == [
        {"lr": lr, "seed": seed} for lr in ("0.1", "0.01") for seed in ("0", "1", "2")
    ]
    assert jobs[0].command == ("python", "t.py", "--lr=0.1", "--seed=0")
    assert len({job.run for job in jobs}) == 6
    assert len(sweep.plan("s", ["true"], ["a=1,1"])) == 1


def test_settings_go_to_their_places_and_the_rest_is_added():
    (job,) = sweep.plan("s", ["t", "--rate", "{lr}", "out/{lr}-{seed}"], ["lr=3", "seed=4", "--width=5"])
    assert job.command == ("t", "--rate", "3", "out/3-4", "--width=5")
    assert job.title == "lr=3 seed=4 width=5"


def test_ids_stay_when_the_grid_grows_and_differ_with_the_command():
    small = sweep.plan("s", ["t"], ["lr=1,2"])
    large = sweep.plan("s", ["t"], ["lr=0,1,2,3"])
    assert {job.run for job in small} < {job.run for job in large}
    assert not {job.run for job in small} & {job.run for job in sweep.plan("s", ["u"], ["lr=1,2"])}


@pytest.mark.parametrize(
    ("command", "grid", "said"),
    [
        (["t"], ["lr"], "'lr' is no axis"),
        (["t"], ["=3"], "is no axis"),
        (["t"], ["lr="], "is no axis"),
        (["t"], ["seed=3..1"], "which is nothing"),
        (["t"], ["lr=1", "lr=2"], "the grid has lr twice"),
        (["t", "{width}"], ["lr=1"], "the grid has no width=…"),
    ],
)
def test_what_cannot_be_meant_is_said(command, grid, said):
    with pytest.raises(UsageError, match=said):
        sweep.plan("s", command, grid)


def test_jobs_share_the_cores_unless_somebody_said_otherwise(monkeypatch):
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    made = sweep.environment({"MKL_NUM_THREADS": "3"}, sweep="s", project="p", at_once=3)
    assert made["OMP_NUM_THREADS"] == "2"
    assert made["MKL_NUM_THREADS"] == "3"
    assert (made["SIDESTEP_GROUP"], made["SIDESTEP_PROJECT"]) == ("s", "p")


def test_what_ended_well_is_known_after_a_restart_and_a_line_cut_off_is_not(tmp_path):
    with sweep.opened(tmp_path, "my sweep") as ledger:
        ledger.add(Outcome("a", {"lr": "1"}, 0, 2.0, 1.0, 30.0))
        ledger.add(Outcome("b", {"lr": "2"}, 1, 2.0, 1.0, 30.0))
    (file,) = (tmp_path / "sweeps").glob("*.jsonl")
    with file.open("a") as lines:
        lines.write(json.dumps({"run": "c"})[:-3] + "\n")
    with sweep.opened(tmp_path, "my sweep") as ledger:
        assert [ledger.is_done(Job(run, {}, ())) for run in "abc"] == [True, False, False]
        ledger.add(Outcome("b", {"lr": "2"}, 0, 2.0, 1.0, 30.0))
        assert ledger.is_done(Job("b", {}, ()))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "sweeps").write_text("in the way")
    with pytest.raises(FolderError, match="choose another --dir"):
        Ledger(tmp_path, "s")


def test_room_is_what_jobs_took_against_what_there_is(monkeypatch):
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    outcomes = [Outcome(str(at), {}, 0, 10.0, 10.0 * cores, 1000.0 + at) for at, cores in enumerate((1.5, 2.0, 4.0))]
    room = sweep.room_for([*outcomes, Outcome("x", {}, 1, 1e-6, 1.0, 10**9)])
    assert (room.seconds, room.cores, room.rss_mb, room.by_cpu) == (10.0, 2.0, 1002.0, 4)
    assert room.by_memory >= 0
    assert sweep.room_for([Outcome("x", {}, 1, 1.0, 1.0, 1.0)]) is None
