"""What Tollbook tells about itself: Prometheus metrics, and OpenTelemetry traces where they are asked for."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from tollbook.core.database import Database

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

PAYMENTS = Counter(
    "tollbook_payments",
    "Payments by what became of them: settled, failed, unknown, claimed.",
    ("network", "outcome"),
    registry=REGISTRY,
)
REFUSALS = Counter(
    "tollbook_refusals", "Requests refused, by the refusal's reason.", ("reason",), registry=REGISTRY
)
LATENCY = Histogram(
    "tollbook_latency_seconds",
    "How long a step took: admit, record, verify, settle, http, webhook, webhook-lag.",
    ("step",),
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
HTTP_REQUESTS = Counter(
    "tollbook_http_requests",
    "Requests answered, by route and status.",
    ("method", "route", "status"),
    registry=REGISTRY,
)
WEBHOOKS = Counter(
    "tollbook_webhook_attempts",
    "POSTs of webhooks by what became of them: delivered, failed.",
    ("outcome",),
    registry=REGISTRY,
)
LOST = Counter(
    "tollbook_transactions_lost",
    "Our transactions that were final, and that the chain took back.",
    ("network",),
    registry=REGISTRY,
)
KEYLESS = Gauge(
    "tollbook_transactions_without_key",
    "Our open transactions whose operator's key is not configured here: nobody looks after them.",
    ("network",),
    registry=REGISTRY,
)
STRANGERS = Gauge(
    "tollbook_transactions_of_strangers",
    "Transactions of our operators' accounts that wait for blocks and were not sent from here.",
    ("network",),
    registry=REGISTRY,
)
POOL = Gauge(
    "tollbook_pool", "Database connections: size, idle, and requests waiting.", ("state",), registry=REGISTRY
)


class Tracer(Protocol):
    """The one thing that is asked of OpenTelemetry."""

    def start_as_current_span(self, name: str) -> Any:
        """A context manager that is the span."""
        ...


def expose(database: Database) -> bytes:
    """The metrics of this process, in Prometheus' text format."""
    stats = database.pool.get_stats()
    POOL.labels("size").set(stats.get("pool_size", 0))
    POOL.labels("idle").set(stats.get("pool_available", 0))
    POOL.labels("waiting").set(stats.get("requests_waiting", 0))
    return generate_latest(REGISTRY)


def make_tracer() -> Tracer | None:
    """A tracer that exports to OTEL_EXPORTER_OTLP_ENDPOINT; None where that is unset or the extra missing."""
    if not os.environ.get(OTLP_ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": "tollbook"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return cast(Tracer, provider.get_tracer("tollbook"))


@contextmanager
def span(tracer: Tracer | None, name: str) -> Generator[None]:
    """A span around a block, where there is a tracer."""
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(name):
        yield
