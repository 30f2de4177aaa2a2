"""Telemetry: traces leave only where they are asked for."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tollbook.core import telemetry


class Collector(BaseHTTPRequestHandler):
    """An OTLP endpoint that keeps what it is sent."""

    def do_POST(self) -> None:
        received: list[tuple[str, bytes]] = self.server.received  # type: ignore[attr-defined]
        received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(telemetry.OTLP_ENDPOINT, raising=False)
    assert telemetry.make_tracer() is None
    with telemetry.span(None, "GET /"):
        pass


def test_with_an_endpoint_spans_are_sent_there(
    collector: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(telemetry.OTLP_ENDPOINT, f"http://127.0.0.1:{collector.server_port}")
    tracer: Any = telemetry.make_tracer()
    with telemetry.span(tracer, "GET /v1/payments"):
        pass
    assert tracer.span_processor.force_flush()
    [(path, body)] = collector.received  # type: ignore[attr-defined]
    assert path == "/v1/traces"
    assert b"GET /v1/payments" in body
    tracer.span_processor.shutdown()
