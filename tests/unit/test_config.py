"""What a run is to be: arguments, else the environment, else defaults."""

import pytest

from sidestep.config import new_id, resolve
from sidestep.errors import ConfigError

NONE = dict.fromkeys(
    ("project", "name", "id", "group", "notes", "dir", "collector", "mode", "rank", "world_size", "profile")
)


def settle(environ=None, **given):
    return resolve(**{**NONE, "tags": (), "resume": "auto", **given}, environ=environ or {})


def test_defaults_need_nothing():
    found = settle()
    assert (found.project, found.mode, found.rank, found.world_size, found.attempt) == ("default", "on", 0, 1, 0)
    assert found.name == found.id
    assert len(found.id) == 8
    assert found.collector is None
    assert not found.strict


def test_the_environment_settles_what_no_argument_does():
    environ = {
        "SIDESTEP_PROJECT": "p",
        "SIDESTEP_RUN_ID": "r",
        "SIDESTEP_NAME": "n",
        "SIDESTEP_MODE": "offline",
        "SIDESTEP_COLLECTOR": "tcp://h:1",
        "SIDESTEP_STRICT": "1",
    }
    found = settle(environ)
    assert (found.project, found.id, found.name, found.mode) == ("p", "r", "n", "offline")
    assert (found.collector, found.strict) == ("tcp://h:1", True)
    given = settle(environ, project="P", id="R", name="N", mode="off", collector="tcp://h:2")
    assert (given.project, given.id, given.name, given.mode, given.collector) == ("P", "R", "N", "off", "tcp://h:2")


@pytest.mark.parametrize(("text", "strict"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_strict_is_said_by_anything_but_zero(text, strict):
    assert settle({"SIDESTEP_STRICT": text}).strict is strict


@pytest.mark.parametrize(
    ("given", "environ", "says"),
    [
        ({"mode": "of"}, {}, "mode='of': it is one of on, offline, off"),
        ({}, {"SIDESTEP_MODE": "online"}, "mode='online'"),
        ({"resume": "always"}, {}, "resume='always': it is one of auto, never, must"),
        ({"rank": -1}, {}, "rank=-1"),
        ({"rank": 2**32}, {}, "rank counts from 0"),
        ({"world_size": 0}, {}, "world_size from 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(given, environ, says):
    with pytest.raises(ConfigError, match=says):
        settle(environ, **given)


@pytest.mark.parametrize(
    ("environ", "rank", "world", "attempt"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "TORCHELASTIC_RESTART_COUNT": "2"}, 3, 8, 2),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_RESTART_COUNT": "1"}, 1, 4, 1),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, 2, 3, 0),
        ({"RANK": "5"}, 5, 6, 0),
        ({"RANK": "", "SLURM_PROCID": "1"}, 1, 2, 0),
        ({"RANK": "x"}, 0, 1, 0),
        ({"RANK": "²"}, 0, 1, 0),
    ],
)
def test_rank_and_world_are_what_the_launcher_tells(environ, rank, world, attempt):
    found = settle(environ)
    assert (found.rank, found.world_size, found.attempt) == (rank, world, attempt)
    assert settle(environ, rank=9, world_size=12).rank == 9


def test_all_ranks_of_a_job_come_to_one_id_by_themselves():
    torchrun = {"TORCHELASTIC_RUN_ID": "job7", "RANK": "0"}
    assert settle(torchrun).id == settle({**torchrun, "RANK": "1"}).id == "torchrun-job7"
    alone = {"TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    assert settle(alone).id == settle({**alone, "RANK": "1"}).id
    assert settle(alone).id != settle({**alone, "MASTER_PORT": "29501"}).id
    hosts = {**alone, "WORLD_SIZE": "4", "MASTER_ADDR": "a"}
    assert settle(hosts).id == settle({**hosts, "RANK": "3"}).id != settle({**hosts, "MASTER_ADDR": "b"}).id
    assert settle({"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}).id == "slurm-5-0"
    batch = {"SLURM_JOB_ID": "5", "ENVIRONMENT": "BATCH"}
    assert settle(batch).id == settle({**batch, "SLURM_RESTART_COUNT": "1"}).id
    assert settle(batch).id.startswith("slurm-5-")
    assert settle({"SLURM_JOB_ID": "5"}).id != settle({"SLURM_JOB_ID": "5"}).id  # a shell in an allocation
    assert settle({**torchrun, "SIDESTEP_RUN_ID": "mine"}).id == "mine"


def test_the_identity_follows_from_project_and_id_alone():
    one = settle(project="p", id="r", rank=0)
    assert one.uid == settle(project="p", id="r", rank=3, name="x").uid
    assert len({one.uid, settle(project="q", id="r").uid, settle(project="p", id="s").uid}) == 3
    assert len(one.uid) == 16


def test_new_ids_are_different_and_can_be_read_aloud():
    ids = {new_id() for _ in range(200)}
    assert len(ids) == 200
    assert not set("".join(ids)) & set("lo01")
