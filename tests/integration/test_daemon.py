"""Starting and ending a collector: what it refuses to start with, and that it ends with everything stored."""

import json
import os
import shutil
import signal
import socket
import sys

import duckdb
from support.place import ended, free_ports, said, tell, until

from sidestep import launch

STAYS = """
import sys, sidestep
run = sidestep.init(id="stays")
for step in range(2000):
    run.log({"loss": step})
print("logged", flush=True)
sys.stdin.readline()
"""


def refusal(place, *options, code, **more):
    """The one line that a collector ends with, from `sidestep up` and from the collector itself."""
    done = place.sidestep("up", *options, **more)
    assert done.returncode == code, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("sidestep: ")
    direct = place.start(sys.executable, "-m", "sidestep_collector", "--dir", str(place.root), *options, **more)
    _, errors = direct.communicate(timeout=60)
    assert direct.returncode == code
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("sidestep: ")]
    return line


def test_sigterm_drains_commits_and_ends_with_code_0(place):
    process = place.start(sys.executable, "-m", "sidestep_collector", "--flush-seconds", "600")
    until(place.collector)
    trainer = place.script(STAYS)
    said(trainer, "logged")
    until(lambda: place.status() and place.counters()["records"] == 2002)
    assert place.stored("stays") == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert place.stored("stays") == 2002
    assert not launch.is_locked(place.root)
    assert not (place.root / "collector.json").exists()
    place.up()
    tell(trainer)
    ended(trainer)
    place.check_whole("stays", key_sets=1)


def test_down_ends_the_collector_and_a_second_down_finds_none(place):
    pid = place.up()["pid"]
    done = json.loads(place.sidestep("down", "--json").stdout)
    assert (done["stopped"], done["pid"]) == (True, pid)
    assert not launch.is_locked(place.root)
    again = place.sidestep("down", "--json")
    assert (again.returncode, json.loads(again.stdout)["stopped"]) == (0, False)


def test_down_says_when_a_collector_does_not_end(place):
    pid = place.up()["pid"]
    os.kill(pid, signal.SIGSTOP)
    done = place.sidestep("down", "--timeout", "0.2")
    assert done.returncode == 1
    assert f"pid {pid}" in done.stderr
    os.kill(pid, signal.SIGCONT)
    until(lambda: not launch.is_locked(place.root))


def test_up_where_a_collector_runs_is_told_so(place):
    first, second = place.up(), place.up()
    assert (first["started"], second["started"]) == (True, False)
    assert first["pid"] == second["pid"]


def test_a_second_collector_on_a_folder_ends_with_5_and_names_the_first(place):
    first = place.up()
    process = place.start(sys.executable, "-m", "sidestep_collector")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    [line] = errors.splitlines()
    assert str(first["pid"]) in line
    assert first["address"] in line
    assert place.status()["pid"] == first["pid"]


def test_a_port_in_use_ends_with_4(place):
    port = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        assert f"tcp://127.0.0.1:{port}" in refusal(place, "--listen", f"tcp://127.0.0.1:{port}", code=4)


def test_an_ipc_address_that_another_collector_serves_is_not_taken_from_it(place, tmp_path):
    from support.place import Place

    other = Place(tmp_path / "other")
    try:
        address = place.up()["address"]
        assert address in refusal(other, "--listen", address, code=4)
        assert place.status()
    finally:
        other.close()


def test_an_address_that_other_machines_reach_ends_with_4_unless_it_is_said(place):
    address = f"tcp://0.0.0.0:{free_ports()}"
    assert "--insecure" in refusal(place, "--listen", address, code=4)
    assert place.up("--listen", address, "--insecure")["address"] == address


def test_an_address_that_is_none_ends_with_4(place):
    assert "tcp://host:port" in refusal(place, "--listen", "http://here", code=4)


def test_a_folder_that_cannot_be_written_ends_with_5(place):
    place.root.write_text("a file")
    assert "cannot be written" in refusal(place, code=5)
    done = place.sidestep("run", "--", sys.executable, "-c", "print('never')")
    assert (done.returncode, done.stdout) == (5, "")


def test_a_store_of_a_newer_version_ends_with_6_and_stays_untouched(place):
    place.up()
    place.train("import sidestep; sidestep.init(id='x').log({'a': 1})")
    place.down()
    file = place.root / "store" / "sidestep.duckdb"
    with duckdb.connect(str(file)) as connection:
        connection.execute("update store_info set version = 99")
    before = file.read_bytes()
    assert "99" in refusal(place, code=6)
    place.train("import sidestep; sidestep.init(id='y', mode='offline').log({'a': 1})")
    done = place.sidestep("sync", str(place.root))
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 1)
    assert place.journals()
    assert file.read_bytes() == before


def test_a_folder_that_was_moved_goes_on_where_it_is_now(place, tmp_path):
    place.up()
    place.train("import sidestep; sidestep.init(id='x').log({'a': 1})")
    place.down()
    shutil.move(place.root, tmp_path / "moved")
    place.root = tmp_path / "moved"
    assert place.values("x", "train/a") == [(0, 1.0)]
    place.up()
    place.train("import sidestep; sidestep.init(id='y').log({'a': 2})")
    assert place.values("x", "train/a") == [(0, 1.0)]
    assert place.values("y", "train/a") == [(0, 2.0)]


def test_up_in_the_foreground_is_the_collector(place):
    process = place.start(sys.executable, "-m", "sidestep", "up", "--foreground")
    found = until(place.collector)
    assert found.pid == process.pid
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_log_lines_are_json_where_they_are_asked_for(place):
    process = place.start(sys.executable, "-m", "sidestep_collector", "--log-format", "json")
    until(place.collector)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert (events[0], events[-1]) == ("listening", "ended")
