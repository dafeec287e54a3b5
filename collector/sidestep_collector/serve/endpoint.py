"""`/healthz`, `/readyz` and `/metrics` over HTTP, on a thread of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from sidestep_collector.serve.figures import Figures
from sidestep_schemas.errors import AddressError

#: A client that says nothing, or reads nothing, is let go.
_CLIENT_SECONDS: Final = 5.0
_JSON: Final = "application/json"

#: Of a path: status code, content type, body.
_Answer = Callable[[str], tuple[int, str, bytes]]


class Endpoint:
    """Answers operators' tools.

    Args:
        host: address to listen at; whoever reaches it is told names of runs.
        port: 0 takes one that is free.
        status: gives the document of `sidestep status`; called on the threads that answer.

    Attributes:
        url: where it listens.

    Raises:
        AddressError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, status: Callable[[], Mapping[str, Any]]) -> None:
        registry = CollectorRegistry()
        registry.register(Figures(status))
        handler = partial(_Handler, partial(_answer, status, registry))
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise AddressError(
                f"http://{host}:{port} cannot be listened at ({error.strerror}): choose another with --metrics-port "
                "or --metrics-host"
            ) from error
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="serve", daemon=True)

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS
    server_version = "sidestep"
    sys_version = ""

    def __init__(self, answer: _Answer, *connection: Any) -> None:
        self._answer = answer
        super().__init__(*connection)

    def do_GET(self) -> None:
        try:
            code, kind, body = self._answer(self.path.partition("?")[0])
        except Exception as error:  # noqa: BLE001 - whoever asks is told; the collector goes on
            code, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n".encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - a line for each scrape would bury others
        pass


def _answer(status: Callable[[], Mapping[str, Any]], registry: CollectorRegistry, path: str) -> tuple[int, str, bytes]:
    if path == "/metrics":
        return HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)
    if path == "/healthz":
        document = status()
        return HTTPStatus.OK, _JSON, _encoded({name: document[name] for name in ("pid", "version", "started")})
    if path == "/readyz":
        reasons = status()["not_ready"]
        code = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return code, _JSON, _encoded({"ready": not reasons, "reasons": reasons})
    return HTTPStatus.NOT_FOUND, "text/plain", b"there are /healthz, /readyz and /metrics\n"


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"
