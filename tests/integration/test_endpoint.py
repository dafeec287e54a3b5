"""/healthz, /readyz and /metrics: what operators' tools see is what `sidestep status` says."""

import json
import socket
import urllib.error
import urllib.request
from dataclasses import fields

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.place import said, tell, until

from sidestep_collector.serve import Endpoint
from sidestep_collector.serve.figures import COUNTERS, Figures
from sidestep_collector.telemetry import Counters, not_ready
from sidestep_schemas.errors import AddressError

ASKED = """
import sys, sidestep
run = sidestep.init("p", id='q"uoted')
print("ready", flush=True)
for line in sys.stdin:
    run.log({"loss": 0.5, "acc": 0.25})
"""
DOCUMENT = {
    "pid": 1,
    "version": "0",
    "started": 0.0,
    "failing": "",
    "reading": True,
    "turned_seconds_ago": 0.1,
    "disk_free_bytes": 10**12,
    "journal_bytes": 0,
    "pending_bytes": 0,
    "commit": {"p50_ms": None, "p99_ms": None},
    "counters": Counters().as_dict(),
    "streams": [],
}


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_collector_tells_its_figures_and_that_it_is_ready(place):
    place.up("--metrics-port", "0", "--flush-seconds", "0.1")
    status = until(place.status)
    url = status["metrics"]
    assert url.startswith("http://127.0.0.1:")
    assert json.loads((place.root / "collector.json").read_text())["metrics"] == url
    trainer = place.script(ASKED)
    said(trainer, "ready")
    for _ in range(3):
        tell(trainer)
    until(lambda: place.rows("select * from ingest where watermark = 5"))
    code, text = get(f"{url}/metrics")
    found = samples(text)
    assert code == 200
    labels = (("attempt", "0"), ("project", "p"), ("rank", "0"), ("run", 'q"uoted'))
    assert found["sidestep_records_total",] == 5
    assert found["sidestep_rows_total",] == 6
    assert found["sidestep_lost_records_total",] == found["sidestep_rejected_chunks_total",] == 0
    assert found["sidestep_ready",] == 1
    assert found["sidestep_journal_bytes",] > 0
    assert found["sidestep_disk_free_bytes",] > 0
    assert found["sidestep_commit_seconds", ("quantile", "0.99")] > 0
    assert found["sidestep_streams", ("state", "running")] == 1
    assert ("sidestep_stream_lag_records", *labels) in found
    assert get(f"{url}/readyz") == (200, '{"ready": true, "reasons": []}\n')
    code, text = get(f"{url}/healthz?x=1")
    assert (code, json.loads(text)["pid"]) == (200, status["pid"])
    assert get(f"{url}/else")[0] == 404
    trainer.communicate("")
    until(lambda: place.rows("select * from runs where state = 'finished'"))
    assert ("sidestep_stream_lag_records", *labels) not in samples(get(f"{url}/metrics")[1])
    text = place.sidestep("status").stdout
    assert "of journals on its host" in text


def test_every_counter_of_the_collector_is_told():
    assert set(COUNTERS) <= {field.name for field in fields(Counters)}
    counters = {field.name: number for number, field in enumerate(fields(Counters))}
    document = DOCUMENT | {"counters": counters | {"new_one": 99}, "not_ready": []}
    found = samples(generate_latest(Figures(lambda: document)).decode())
    for field, count in document["counters"].items():
        assert found[f"sidestep_{COUNTERS.get(field, (field,))[0]}_total",] == count


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"failing": "no space"}, "commits fail: no space"),
        ({"disk_free_bytes": 1000}, "the disk is full"),
        ({"reading": False}, "nothing is read"),
        ({"turned_seconds_ago": 60.0}, "stood still for 60 s"),
    ],
)
def test_a_collector_that_stores_nothing_is_not_ready_and_says_why(changed, says):
    document = DOCUMENT | changed
    [reason] = not_ready(document)
    assert says in reason
    endpoint = Endpoint("127.0.0.1", 0, lambda: document | {"not_ready": not_ready(document)})
    endpoint.start()
    code, text = get(f"{endpoint.url}/readyz")
    assert (code, json.loads(text)["reasons"]) == (503, [reason])
    assert samples(get(f"{endpoint.url}/metrics")[1])["sidestep_ready",] == 0
    endpoint.close()


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(AddressError, match="--metrics-port"):
        Endpoint("127.0.0.1", other.getsockname()[1], dict)


@pytest.mark.parametrize(
    ("said", "host", "warned"),
    [((), "127.0.0.1", False), (("--insecure",), "127.0.0.1", False), (("--metrics-host", "0.0.0.0"), "0.0.0.0", True)],
)
def test_only_an_address_that_is_named_is_open_to_other_machines(place, said, host, warned):
    place.up("--metrics-port", "0", *said)
    url = until(place.status)["metrics"]
    assert url.startswith(f"http://{host}:")
    assert get(f"{url}/healthz")[0] == 200
    assert ("names of runs" in (place.root / "collector.log").read_text()) is warned


def test_no_host_is_not_every_host(place):
    done = place.sidestep("up", "--metrics-port", "0", "--metrics-host", "")
    assert done.returncode == 2
    assert "metrics_host (command line)" in done.stderr


def test_a_defect_in_an_answer_is_told_to_who_asked():
    endpoint = Endpoint("127.0.0.1", 0, dict)
    endpoint.start()
    assert get(f"{endpoint.url}/readyz")[0] == 500
    endpoint.close()
