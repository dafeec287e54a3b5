"""How a process ends: what its last record says, what lies beside its journal, and that it ends as it ever did."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.journal_reader import read_records

from sidestep import ending
from sidestep.leftover import LeftoverJournal
from sidestep_schemas import host
from sidestep_schemas.host import oom_counters, process_start


def train(folder, script, **more):
    environ = {**os.environ, "SIDESTEP_DIR": str(folder), "SIDESTEP_MODE": "offline", **more}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environ, capture_output=True, text=True, check=False
    )


def end_of(folder):
    return json.loads(read_records(folder)[-1].fields[1])


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("sys.exit(3)", 3, {"status": "failed", "error": "SystemExit: 3", "exception": "SystemExit", "exit_code": 3}),
        ("sys.exit('no data')", 1, {"status": "failed", "error": "SystemExit: no data"}),
        ("sys.exit()", 0, {"status": "finished", "error": None}),
        ("sys.exit(0)", 0, {"status": "finished", "error": None}),
        ("sys.exit((2,))", 2, {"exit_code": 2}),
    ],
)
def test_an_exit_code_is_part_of_the_end_and_stays_what_it_was(tmp_path, how, code, said):
    done = train(tmp_path, f"import sys, sidestep; sidestep.init(); {how}")
    assert done.returncode == code
    assert done.stderr == ("no data\n" if "no data" in how else "")
    assert said.items() <= end_of(tmp_path).items()


CAUGHT = """
import sys, threading, sidestep
run = sidestep.init()
try:
    sys.exit(3)
except SystemExit as error:
    assert error.code == 3 and repr(error) == "SystemExit(3)" and isinstance(error, SystemExit)
thread = threading.Thread(target=lambda: sys.exit(4))
thread.start()
thread.join()
run.log({"a": 1.0})
"""


def test_an_exit_that_is_caught_or_ends_a_thread_is_none(tmp_path):
    done = train(tmp_path, CAUGHT)
    assert (done.returncode, done.stderr) == (0, "")
    assert end_of(tmp_path) == {"status": "finished", "error": None}


def test_an_exit_out_of_the_block_of_a_run_says_its_code(tmp_path):
    done = train(tmp_path, "import sidestep\nwith sidestep.init(): raise SystemExit(7)")
    assert done.returncode == 7
    assert end_of(tmp_path) == {
        "status": "failed",
        "error": "SystemExit: 7",
        "exception": "SystemExit",
        "exit_code": 7,
    }


def test_the_end_has_the_last_lines_of_the_traceback(tmp_path):
    script = "import sidestep; sidestep.init()\ndef f(n):\n  if n: f(n - 1)\n  raise ValueError('too bad')\nf(60)"
    done = train(tmp_path, script)
    assert done.stderr.endswith("ValueError: too bad\n")
    end = end_of(tmp_path)
    assert end["exception"] == "ValueError"
    assert end["traceback"].splitlines()[-1] == "ValueError: too bad"
    assert len(end["traceback"].splitlines()) <= 40


def test_an_exception_that_cannot_be_shown_is_one_all_the_same():
    class Rude(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    said = ending.described(Rude())
    assert said["error"] == said["exception"] == "Rude"


WAITS = """
import signal, sys, sidestep
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` before the tests would leave it ignored
run = sidestep.init()
run.log({"loss": 1.0})
if sys.argv[1:] == ["own"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
def where_it_stands():
    print("ready", flush=True)
    while True:
        signal.pause()
where_it_stands()
"""


def stopped(folder, number, *arguments):
    environ = {**os.environ, "SIDESTEP_DIR": str(folder), "SIDESTEP_MODE": "offline"}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate()[1] == ""
    return process.returncode


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_process_as_ever_and_leaves_its_name_and_the_stack(tmp_path, name):
    number = getattr(signal, name)
    assert stopped(tmp_path, number) == -number
    [folder] = tmp_path.glob("journal/*/*")
    leftover = LeftoverJournal(folder, host.boot_id())
    *_, last = leftover.shipments()
    payload = bytes(last.segment.view[last.start : last.stop])
    assert b'"status": "killed"' in payload
    assert f'"signal": "{name}"'.encode() in payload
    assert b"where_it_stands" in payload
    leftover.close(delivered=True)
    assert not folder.exists()


def test_a_handler_of_the_users_is_left_alone(tmp_path):
    assert stopped(tmp_path, signal.SIGTERM, "own") == 9
    assert end_of(tmp_path)["exit_code"] == 9


def test_a_run_that_ends_well_leaves_no_files_of_signals(tmp_path):
    done = train(tmp_path, "import sidestep; run = sidestep.init(); run.finish()")
    assert done.returncode == 0
    assert not list(tmp_path.rglob("signal_*"))


FORKS = """
import os, signal, sys, sidestep
run = sidestep.init()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
[folder] = {os.path.dirname(path) for path in [run.stats["journal"] + "/x"]}
assert all(os.path.getsize(f"{folder}/{name}") == 0 for name in os.listdir(folder) if name.startswith("signal_"))
"""


def test_a_signal_to_a_forked_child_is_none_of_its_parents(tmp_path):
    done = train(tmp_path, FORKS)
    assert (done.returncode, done.stderr) == (0, "")
    assert end_of(tmp_path)["status"] == "finished"


def test_a_process_lives_until_it_has_ended_even_where_nobody_asked_for_its_code():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_start(child.pid)
    assert int(started) > 0
    assert process_start(child.pid) == started != process_start(os.getpid())
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert process_start(child.pid) == ""
    child.wait()
    assert process_start(child.pid) == ""


def test_counters_of_memory_kills_are_read_of_a_group_and_those_above_it(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("9:cpu:/x\n4:memory:/job/task\n0::/unified/job\n")
    for path, text in {
        "memory/job/task/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
        "unified/job/memory.events": "low 0\noom 1\noom_kill 7\noom_group_kill 0\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = oom_counters(str(membership), str(tmp_path))
    assert {path.removeprefix(f"{tmp_path}/"): count for path, count in found.items()} == {
        "memory/job/task/memory.oom_control": 2,
        "memory/job/memory.oom_control": 5,
        "unified/job/memory.events": 7,
    }
    assert oom_counters(str(tmp_path / "none")) == {}


def test_a_journal_without_a_folder_listens_for_nothing(tmp_path):
    traces = ending.SignalTraces(tmp_path / "missing")
    traces.begin()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    traces.end()
