"""`sidestep status` and `sidestep tail`: what the collector says of itself, and what comes in now."""

import json
import sys

from support.place import ended, said, tell, until

ASKED = """
import sys, sidestep
run = sidestep.init("p", id="live")
print("ready", flush=True)
step = 0
for line in sys.stdin:
    run.log({"loss": step * 0.5, "bad": float("nan")})
    step += 1
"""


def test_status_tells_who_the_collector_is_and_how_far_each_stream_is_stored(place):
    up = place.up("--flush-seconds", "0.1")
    trainer = place.script(ASKED)
    said(trainer, "ready")
    for _ in range(5):
        tell(trainer)
    until(lambda: place.rows("select * from ingest where watermark = 7"))
    until(lambda: place.status()["streams"][0]["lag"] == 0)
    done = place.sidestep("status", "--json")
    document = json.loads(done.stdout)
    assert (document["pid"], document["address"], document["dir"]) == (up["pid"], up["address"], str(place.root))
    [stream] = document["streams"]
    assert {key: stream[key] for key in ("run", "project", "rank", "attempt")} == {
        "run": "live",
        "project": "p",
        "rank": 0,
        "attempt": 0,
    }
    assert (stream["received"], stream["committed"], stream["lag"], stream["lost"]) == (7, 7, 0, 0)
    assert document["counters"]["records"] == 7
    assert document["counters"]["scalars"] == 10
    assert document["commit"]["p50_ms"] > 0
    assert document["failing"] == ""
    text = place.sidestep("status").stdout
    assert f"collector pid {up['pid']} at {up['address']}" in text
    assert "p/live rank 0 attempt 0: 7 stored, lag 0, lost 0" in text


def test_status_and_tail_without_a_collector_are_one_line_and_4(place):
    for command in (("status",), ("tail", "x")):
        done = place.sidestep(*command)
        assert done.returncode == 4
        [line] = done.stderr.splitlines()
        assert "sidestep up" in line


def test_tail_shows_records_as_they_come(place):
    place.up()
    trainer = place.script(ASKED)
    said(trainer, "ready")
    until(lambda: place.status()["streams"])
    tail = place.start(sys.executable, "-m", "sidestep", "tail", "live", "--json", "--records", "3")
    # Nobody knows when the subscription has arrived, so records come until it has ended.
    seen = [json.loads(line) for line in fed(trainer, tail)]
    assert tail.wait(60) == 0
    assert len(seen) == 3
    first = seen[0]["step"]
    assert [record["step"] for record in seen] == [first, first + 1, first + 2]
    assert all(record["values"] == {"train/loss": record["step"] * 0.5, "train/bad": None} for record in seen)
    tell(trainer)
    ended(trainer)


def fed(trainer, tail):
    """Let the trainer log until the tail has ended; what that printed."""

    def over():
        tell(trainer)
        return tail.poll() is not None

    until(over)
    return tail.stdout.read().splitlines()


def test_tail_in_text_names_steps_and_values(place):
    place.up()
    trainer = place.script(ASKED)
    said(trainer, "ready")
    until(lambda: place.status()["streams"])
    tail = place.start(sys.executable, "-m", "sidestep", "tail", "p/live", "--records", "1")
    [line] = fed(trainer, tail)
    assert "train/loss" in line
    assert "train/bad nan" in line


def test_tail_of_a_run_that_is_not_there_names_those_that_are(place):
    place.up()
    place.train("import sidestep; sidestep.init(id='here').log({'a': 1})")
    done = place.sidestep("tail", "gone")
    assert done.returncode == 2
    assert "it knows: here" in done.stderr


def test_ls_show_and_sql_read_while_the_run_goes_on(place):
    place.up("--flush-seconds", "0.1")
    trainer = place.script(ASKED)
    said(trainer, "ready")
    for _ in range(3):
        tell(trainer)
    until(lambda: len(place.values("live", "train/loss")) == 3)
    [listed] = json.loads(place.sidestep("ls", "--json").stdout)
    assert (listed["run"], listed["state"]) == ("live", "running")
    shown = json.loads(place.sidestep("show", "live", "--json").stdout)
    assert [metric["metric"] for metric in shown["metrics"]] == ["train/bad", "train/loss"]
    asked = place.sidestep("sql", "--json", "select max(value) as top from points where metric = 'train/loss'")
    assert json.loads(asked.stdout) == [{"top": 1.0}]
