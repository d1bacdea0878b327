"""What a server tells Prometheus: answered requests with their seconds, and what its engine does at the moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from dollartune.serve.service import Service

# From a label of a small encoder (about 10 ms) to `Limits.request_seconds` (120 s), two or three to a decade, so that a
# quantile read off the buckets is right to within a factor of two or so.
BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServerMetrics:
    """Counts requests by address and status, and their seconds; text for `/metrics`.

    Args:
        service: whose engine and adapters are read whenever somebody asks for the text.
    """

    def __init__(self, service: Service) -> None:
        # A registry of its own, not the library's global one: a test or a notebook may run several servers in one process.
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dollartune_requests", "Answered requests.", ("path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "dollartune_request_seconds", "Time until an answer began.", ("path",),
            buckets=BUCKETS_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(_EngineCollector(service))

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> str:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry).decode("utf8")


class _EngineCollector(Collector):
    """Reads the engine when asked, so that the engine's thread counts in plain integers and knows no metrics."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        engine = self.service.engine
        served = len(self.service.pool.names()) - 1  # the bare backbone is a name, too
        yield GaugeMetricFamily("dollartune_running_sequences", "Sequences that generate now.", engine.running)
        yield GaugeMetricFamily("dollartune_waiting_requests", "Requests in the queue.", engine.waiting)
        yield GaugeMetricFamily("dollartune_adapters", "Adapters that are served.", served)
        yield CounterMetricFamily("dollartune_generated_tokens", "Tokens written.", engine.generated)
        yield CounterMetricFamily("dollartune_steps", "Steps of the engine.", engine.steps)
