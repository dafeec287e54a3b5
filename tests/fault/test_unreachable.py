"""The network between training and collector takes what is sent and brings nothing: logging goes on, and all arrives."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
from support.place import ended, said, tell, until

SPACE, HERE, THERE = f"sidestep{os.getpid()}", "10.213.77.1", "10.213.77.2"

LOGS = """
import sys, sidestep
run = sidestep.init(id="far")
def log(first, last):
    for step in range(first, last):
        run.log({"loss": step / 3})
log(0, 100)
assert run.flush(60)
print("stored", flush=True)
sys.stdin.readline()
log(100, 20_000)
print("logged", flush=True)
sys.stdin.readline()
report = run.finish(timeout=100)
print("complete", report.complete, report.committed, flush=True)
"""


def ip(*arguments, check=True):
    return subprocess.run(("ip", *arguments), capture_output=True, check=check).returncode == 0


@pytest.fixture
def space():
    """A network of its own, in which a training is as on another machine."""
    if shutil.which("ip") is None or os.geteuid() != 0 or not ip("netns", "add", SPACE, check=False):
        pytest.skip("no network of its own can be made here")
    here, there = f"ss{os.getpid()}h", f"ss{os.getpid()}t"
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", SPACE)
        ip("addr", "add", f"{HERE}/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", SPACE, "addr", "add", f"{THERE}/24", "dev", there)
        ip("-n", SPACE, "link", "set", there, "up")
        yield SPACE
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", SPACE)


def test_logging_goes_on_while_what_is_sent_is_dropped_on_the_way_and_all_arrives_later(place, space, tmp_path):
    address = f"tcp://{HERE}:27410"
    place.up("--listen", address, "--insecure")
    script = place.written(LOGS)
    trainer = place.start(
        *("ip", "netns", "exec", space, sys.executable, str(script)),
        SIDESTEP_COLLECTOR=address,
        SIDESTEP_DIR=str(tmp_path / "far"),
    )
    said(trainer, "stored")
    assert place.stored("far") == 102
    ip("-n", space, "route", "add", "blackhole", f"{HERE}/32")
    tell(trainer)
    said(trainer, "logged")
    assert place.stored("far") == 102
    ip("-n", space, "route", "del", "blackhole", f"{HERE}/32")
    tell(trainer)
    assert said(trainer, "complete") == "complete True 20003"
    ended(trainer)
    until(lambda: place.rows("select * from runs where state = 'finished'"))
    assert place.values("far", "train/loss") == [(step, step / 3) for step in range(20_000)]
    place.check_whole("far", key_sets=1)
