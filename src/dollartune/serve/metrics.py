"""Counters and times of a server, as Prometheus reads them."""

from __future__ import annotations

import threading
from collections import Counter

BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Measures:
    """Counts requests by address and status, and their seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Books one answered request."""
        with self._lock:
            self._requests[path, status] += 1
            self._counts[path] += 1
            self._seconds[path] += seconds  # type: ignore[assignment]
            for bucket in BUCKETS_SECONDS:
                if seconds <= bucket:
                    self._buckets[path, bucket] += 1

    def text(self, gauges: dict[str, tuple[str, float]], counters: dict[str, tuple[str, float]]) -> str:
        """The exposition format: these gauges and counters (name -> help, value) and what was observed."""
        lines = []
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, (help_text, value) in values.items():
                lines += [
                    f"# HELP dollartune_{name} {help_text}",
                    f"# TYPE dollartune_{name} {kind}",
                    f"dollartune_{name} {value:g}",
                ]
        with self._lock:
            lines += ["# HELP dollartune_requests_total Answered requests.", "# TYPE dollartune_requests_total counter"]
            lines += [
                f'dollartune_requests_total{{path="{path}",status="{status}"}} {n}'
                for (path, status), n in sorted(self._requests.items())
            ]
            lines += [
                "# HELP dollartune_request_seconds Time until an answer began.",
                "# TYPE dollartune_request_seconds histogram",
            ]
            for path in sorted(self._counts):
                for bucket in BUCKETS_SECONDS:
                    lines.append(
                        f'dollartune_request_seconds_bucket{{path="{path}",le="{bucket:g}"}} {self._buckets[path, bucket]}'
                    )
                lines.append(f'dollartune_request_seconds_bucket{{path="{path}",le="+Inf"}} {self._counts[path]}')
                lines.append(f'dollartune_request_seconds_sum{{path="{path}"}} {self._seconds[path]:.6f}')
                lines.append(f'dollartune_request_seconds_count{{path="{path}"}} {self._counts[path]}')
        return "\n".join(lines) + "\n"
