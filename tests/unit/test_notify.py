"""Telling of findings: who hears of what, and that nobody waits for a webhook that is slow, down or gone."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest

from sidestep_collector.blocks import Finding
from sidestep_collector.notify import Notifier
from sidestep_collector.notify.webhook import QUEUE_MAX, Webhook

T0 = 1_700_000_000_000_000_000


def finding(**given: Any) -> Finding:
    known: dict[str, Any] = {
        "run": "r",
        "project": "p",
        "finding": "hot@3",
        "rule": "hot",
        "profile": "mine",
        "subject": "a",
        "metric": "m",
        "rank": 0,
        "severity": "warning",
        "state": "firing",
        "first_step": 3,
        "last_step": 5,
        "first_t_ns": T0,
        "last_t_ns": T0,
        "count": 2,
        "value": 12.0,
        "threshold": 10.0,
        "message": "it is hot",
        "advice": ("cool it",),
        "evidence": {},
        "news": "opened",
    }
    return Finding(**{**known, **given})


class Server:
    """A webhook's other end: what came is in `got`; it answers with `status`, after `hold` was set."""

    def __init__(self) -> None:
        self.got: Queue[dict[str, Any]] = Queue()
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.hold.wait(30)
                self.send_response(server.status)
                self.end_headers()
                server.got.put(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/hook"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.hold.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_a_finding_with_news_is_posted_and_logged(server, capsys):
    notifier = Notifier(server.url)
    notifier.tell([finding(), finding(news="")])
    notifier.close()
    body = server.got.get(timeout=20)
    assert body["text"] == "[warning] p/r: hot: it is hot"
    assert (body["news"], body["value"], body["advice"]) == ("opened", 12.0, ["cool it"])
    assert server.got.empty()
    assert notifier.as_dict() == {"sent": 1, "dropped": 0}
    assert capsys.readouterr().out.count("hot: it is hot") == 1


def test_what_is_no_finite_number_is_posted_as_text(server):
    notifier = Notifier(server.url)
    notifier.tell([finding(value=math.nan, threshold=math.inf)])
    notifier.close()
    body = server.got.get(timeout=20)
    assert (body["value"], body["threshold"]) == ("nan", "inf")


def test_only_what_is_bad_enough_is_posted(server):
    notifier = Notifier(server.url, "critical")
    notifier.tell([finding(), finding(severity="critical", rule="worse")])
    notifier.close()
    assert server.got.get(timeout=20)["rule"] == "worse"
    assert server.got.empty()


def test_without_a_webhook_findings_are_logged(capsys):
    notifier = Notifier()
    notifier.tell([finding()])
    notifier.close()
    assert "it is hot" in capsys.readouterr().out


def test_a_webhook_that_refuses_or_is_down_is_said_once_and_counted(server, capsys):
    server.status = 500
    hook = Webhook(server.url)
    for _ in range(3):
        hook.post({})
    hook.close(timeout_seconds=20)
    assert (hook.sent, hook.dropped) == (0, 3)
    assert capsys.readouterr().out.count("the webhook takes nothing") == 1
    server.http.server_close()
    down = Webhook(server.url)
    down.post({})
    down.close(timeout_seconds=20)
    assert (down.sent, down.dropped) == (0, 1)


def test_a_webhook_that_hangs_holds_nobody_up_and_what_is_too_much_is_dropped(server):
    server.hold.clear()
    hook = Webhook(server.url)
    for number in range(QUEUE_MAX + 50):  # the first may be under way
        hook.post({"number": number})
    assert hook.dropped in {49, 50}
    server.hold.set()
    hook.close(timeout_seconds=20)
    assert hook.sent + hook.dropped == QUEUE_MAX + 50
