"""A job beside a collector: its exit code, its signals, its environment."""

import os
import signal
import subprocess
import sys

import pytest

from sidestep import beside, launch
from sidestep.errors import AddressError, FolderError, SidestepError, UsageError

RUN = """
import sys
from pathlib import Path
from sidestep import beside, launch
beside.launch.require_installed = lambda: None
launch.find = lambda root: launch.Collector(1, "ipc:///x")
beside._summary = lambda: None
sys.exit(beside.run_beside(Path(sys.argv[1]), tuple(sys.argv[2:]), {"SIDESTEP_NAME": "n"}, as_json=False))
"""
SAYS_ITS_SIGNAL = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"usr1\\n"))  # it may come within the next line
print("ready", flush=True)
while True: signal.pause()
"""


def start(folder, *command):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("code", [0, 1, 42])
def test_the_exit_code_is_the_jobs(tmp_path, code):
    with start(tmp_path, "--", sys.executable, "-c", f"raise SystemExit({code})") as wrapper:
        assert wrapper.wait() == code


def test_the_job_knows_its_collector_and_its_name(tmp_path):
    script = "import os; print(*(os.environ['SIDESTEP_' + n] for n in ('COLLECTOR', 'DIR', 'NAME')))"
    with start(tmp_path, sys.executable, "-c", script) as wrapper:
        assert wrapper.stdout.read() == f"ipc:///x {tmp_path} n\n"


def test_signals_reach_the_job_which_decides_what_becomes_of_it(tmp_path):
    with start(tmp_path, sys.executable, "-c", SAYS_ITS_SIGNAL) as wrapper:
        assert wrapper.stdout.readline() == "ready\n"
        wrapper.send_signal(signal.SIGUSR1)
        assert wrapper.stdout.readline() == "usr1\n"
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.wait() == 7


def test_a_job_that_a_signal_ends_gives_128_and_its_number(tmp_path):
    with start(tmp_path, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)") as wrapper:
        assert wrapper.wait() == 137
    with start(tmp_path, sys.executable, "-c", "print('ready', flush=True); input()") as wrapper:
        assert wrapper.stdout.readline() == "ready\n"
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.wait() == 143


def test_a_signal_that_comes_before_the_job_reaches_it(monkeypatch):
    started = subprocess.Popen

    def interrupted(*arguments, **options):
        job = started(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return job

    monkeypatch.setattr(beside.subprocess, "Popen", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert beside._run_job((sys.executable, "-c", "import signal; signal.pause()"), os.environ) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_is_none_is_one_clear_line_and_starts_no_collector(tmp_path):
    with pytest.raises(UsageError, match="no-such-command cannot be run: there is no such command"):
        beside.run_beside(tmp_path / "data", ("--", "no-such-command"), {}, as_json=False)
    with pytest.raises(UsageError, match="nothing to run"):
        beside.run_beside(tmp_path / "data", ("--",), {}, as_json=False)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("code", "error"), [(4, AddressError), (5, FolderError), (1, SidestepError)])
def test_a_collector_that_ends_at_once_says_why(tmp_path, monkeypatch, code, error):
    script = f"import sys; print('sidestep: because'); print('more'); sys.exit({code})"
    monkeypatch.setattr(launch, "command", lambda root, *options: [sys.executable, "-c", script])
    (tmp_path / "collector.log").write_text("sidestep: of old\n")
    with pytest.raises(error, match=r"^because$") as caught:
        beside.start_and_wait(tmp_path)
    assert caught.value.exit_code == code
