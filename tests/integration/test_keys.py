"""Who may connect: real collectors that ask for keys, real trainers with a right one, a wrong one, and none."""

import json
import os
import re
import socket
import stat
from pathlib import Path

import pytest
from support.place import free_ports, said, until

#: The second where the other side closes before it has said how it speaks.
WANTS_A_KEY = re.compile("takes nobody without a key|it wants a key")
TRAINS = """
import sys, sidestep
run = sidestep.init(id=sys.argv[1], collector=sys.argv[2], dir=sys.argv[3], system_seconds=0)
for step in range(200):
    run.log({"loss": step})
print("logged", flush=True)
sys.stdin.readline()
for step in range(200):
    run.log({"loss": step})
report = run.finish(timeout=float(sys.argv[4]))
print(report.committed, report.pending, report.lost)
print(report)
"""


class Guarded:
    """A collector at a loopback port that asks for keys, and trainers elsewhere."""

    def __init__(self, place, tmp_path):
        self.place = place
        self.elsewhere = tmp_path / "elsewhere"
        self.address = f"tcp://127.0.0.1:{free_ports()}"

    def new(self, name):
        done = self.place.sidestep("keys", "new", name, "--out", str(self.place.root.parent / f"{name}.key"), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["file"]

    def up(self):
        return self.place.up("--listen", self.address, "--require-keys")

    def train(self, run, key, patience=60):
        arguments = (run, self.address, str(self.elsewhere / run), str(patience))
        trainer = self.place.script(TRAINS, *arguments, SIDESTEP_KEY=key)
        said(trainer, "logged")
        return trainer

    def end(self, trainer):
        """What a trainer's report says, in numbers and in words, and what it wrote to stderr."""
        out, errors = trainer.communicate("\n", timeout=60)
        assert trainer.returncode == 0, errors
        numbers, words = out.strip().splitlines()[-2:]
        return tuple(map(int, numbers.split())), words, errors

    def access(self):
        return until(self.place.status)["access"]  # it may not answer at once where the machine is busy


@pytest.fixture
def guarded(place, tmp_path):
    return Guarded(place, tmp_path)


def test_a_collector_that_others_can_reach_starts_with_keys_and_not_without(guarded):
    address = f"tcp://0.0.0.0:{free_ports()}"
    refused = guarded.place.sidestep("up", "--listen", address)
    assert refused.returncode == 4
    assert "sidestep keys new" in refused.stderr
    guarded.new("alice")
    assert guarded.place.up("--listen", address)["address"] == address
    assert guarded.access() == {"allowed": ["alice", "local"], "refused": 0}


def test_keys_that_are_required_must_be_there_and_be_of_use(guarded):
    done = guarded.place.sidestep("up", "--listen", guarded.address, "--require-keys")
    assert (done.returncode, "sidestep keys new" in done.stderr) == (2, True)
    guarded.new("alice")
    for options in ((), ("--listen", guarded.address, "--insecure")):
        done = guarded.place.sidestep("up", "--require-keys", *options)
        assert done.returncode != 0
        assert "keys are for tcp" in done.stderr


def test_a_key_of_the_collector_that_others_can_read_is_not_used(guarded):
    guarded.new("alice")
    (guarded.place.root / "keys" / "collector.key").chmod(0o644)
    done = guarded.place.sidestep("up", "--listen", guarded.address, "--require-keys")
    assert (done.returncode, "can be read by others" in done.stderr) == (2, True)


def test_the_right_key_loses_nothing_beside_a_wrong_one_and_none(guarded):
    right, late = guarded.new("right"), guarded.new("late")
    guarded.place.sidestep("keys", "revoke", "late")
    guarded.up()
    trainers = [guarded.train("right", right), guarded.train("wrong", late, 20), guarded.train("none", "", 20)]
    (good, words, _), (wrong, said_wrong, errors_wrong), (none, said_none, errors_none) = map(guarded.end, trainers)
    assert good == (403, 0, 0)
    assert "key" not in words
    assert (wrong, none) == ((0, 403, 0), (0, 403, 0))
    assert "does not allow this key" in said_wrong
    assert errors_wrong.count("does not allow this key") == 1
    assert WANTS_A_KEY.search(said_none)
    assert len(WANTS_A_KEY.findall(errors_none)) == 1
    assert guarded.place.stored("right") == 403
    assert guarded.place.rows("select run from runs") == [("right",)]
    assert guarded.access()["refused"] >= 1


def test_a_key_at_a_collector_that_asks_for_none_is_not_left_out(guarded):
    key = guarded.new("alice")
    guarded.place.up("--listen", guarded.address)
    numbers, words, _ = guarded.end(guarded.train("r", key))
    assert numbers == (0, 403, 0)
    assert "uses no" in words  # "none", where the other side closes before it has said how it speaks
    assert guarded.end(guarded.train("open", ""))[0] == (403, 0, 0)


def test_a_revoked_key_is_cut_while_another_goes_on_and_may_come_back(guarded):
    stays, goes = guarded.new("stays"), guarded.new("goes")
    guarded.up()
    good, bad = guarded.train("good", stays), guarded.train("bad", goes)
    until(lambda: guarded.place.stored("good") == 202 and guarded.place.stored("bad") == 202)
    assert guarded.place.sidestep("keys", "revoke", "goes").returncode == 0
    until(lambda: guarded.access()["refused"] >= 1)
    numbers, words, errors = guarded.end(bad)
    assert numbers == (202, 201, 0)
    assert "does not allow this key" in words
    assert guarded.end(good)[0] == (403, 0, 0)
    again = guarded.new("goes2")
    done = guarded.place.sidestep(
        "sync", str(guarded.elsewhere / "bad"), "--collector", guarded.address, "--key", again, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert guarded.place.stored("bad") == 403
    guarded.place.check_whole("good", key_sets=1)


def test_sync_status_and_tail_show_keys_or_say_why_not(guarded):
    key = guarded.new("alice")
    guarded.up()
    trainer = guarded.train("r", "", 5)
    guarded.end(trainer)
    place, collector = guarded.place, ("--collector", guarded.address)
    remote = {"SIDESTEP_DIR": str(guarded.elsewhere)}
    done = place.sidestep("sync", str(guarded.elsewhere / "r"), *collector, **remote)
    assert (done.returncode, bool(WANTS_A_KEY.search(done.stderr))) == (1, True)
    for command in (("status",), ("tail", "r")):
        done = place.sidestep(*command, *collector, **remote)
        assert (done.returncode, bool(WANTS_A_KEY.search(done.stderr))) == (4, True)
    assert place.sidestep("sync", str(guarded.elsewhere / "r"), *collector, SIDESTEP_KEY=key).returncode == 0
    status = json.loads(place.sidestep("status", *collector, "--key", key, "--json", **remote).stdout)
    assert [stream["run"] for stream in status["streams"]] == ["r"]
    tail = place.sidestep("tail", "r", *collector, "--key", key, "--timeout", "0.1", **remote)
    assert tail.returncode == 0, tail.stderr


def test_what_runs_beside_the_collector_needs_no_key_of_its_own(guarded):
    guarded.new("alice")
    guarded.up()
    done = guarded.place.sidestep("run", "--json", "--id", "beside", "--", "python", "-c", BESIDE)
    assert done.returncode == 0, done.stderr
    assert guarded.place.stored("beside") == 13
    assert guarded.place.sidestep("status").returncode == 0


BESIDE = """
import sidestep
run = sidestep.init(system_seconds=0)
for step in range(10):
    run.log({"loss": step})
assert run.finish(timeout=60).complete
"""


def test_a_journal_that_was_left_beside_the_collector_is_shipped_with_its_key(guarded):
    guarded.new("alice")
    guarded.place.train(
        BESIDE.replace("assert run.finish(timeout=60).complete", "run.finish(timeout=0)"),
        SIDESTEP_MODE="offline",
        SIDESTEP_RUN_ID="left",
    )
    guarded.up()
    until(lambda: guarded.place.stored("left") == 13)


def test_nothing_but_a_handshake_gets_an_answer(guarded):
    guarded.new("alice")
    guarded.up()
    port = int(guarded.address.rpartition(":")[2])
    for offset in range(3):
        with socket.create_connection(("127.0.0.1", port + offset)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(4096))
    assert guarded.place.counters()["frames"] == 0


def test_no_key_is_in_what_is_stored_or_logged(guarded):
    key = guarded.new("alice")
    text = Path(key).read_text(encoding="ascii").splitlines()[-1]
    guarded.up()
    assert guarded.end(guarded.train("r", text))[0] == (403, 0, 0)
    guarded.place.down()
    secret = text.rpartition(":")[2][44:]
    files = [path for path in guarded.place.root.rglob("*") if path.is_file() and "keys" not in path.parts]
    assert files
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (guarded.place.root / "keys").rglob("*")}
    assert modes == {0o600, 0o700}
