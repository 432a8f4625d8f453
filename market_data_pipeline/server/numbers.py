"""Numbers of a running server: requests and rows by source, for ``/metrics`` and ``cache-stats``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from market_data_pipeline.server.answers import AnswerCache

_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 2, 5, 10)

SOURCES = ("lake", "hot", "exchange")
"""Where rows are read, the nearest first: the lake, the live rows, or the exchange."""


class Numbers:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self._answered = PrometheusCounter(
            "market_data_http_requests_total", "Answered requests.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "market_data_http_seconds", "Time to answer a request.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._rows = PrometheusCounter(
            "market_data_rows_total", "Rows sent, by source.", ["source"], registry=self.registry
        )
        self._sourced = PrometheusCounter(
            "market_data_row_requests_total", "Requests for rows, by source.", ["source"], registry=self.registry
        )
        for source in SOURCES:
            self._rows.labels(source)
            self._sourced.labels(source)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._answered.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def served(self, origins: Iterable[tuple[str, int]]) -> None:
        """Count a request for rows once, by the farthest of its sources, and its rows by source."""
        farthest = SOURCES[0]
        for source, rows in origins:
            farthest = max(farthest, source, key=SOURCES.index)
            self.rows[source] += rows
            self._rows.labels(source).inc(rows)
        self.requests[farthest] += 1
        self._sourced.labels(farthest).inc()

    def watch(self, answers: AnswerCache) -> None:
        """Report the size of a cache of answers, too."""
        self.registry.register(_OfCache(answers))

    def exposition(self) -> bytes:
        """Return all numbers in the text format of Prometheus."""
        return generate_latest(self.registry)

    def stats(self, answers: AnswerCache) -> dict[str, object]:
        """Return the numbers of ``cache-stats``.

        The hit rate is the share of requests, or of rows, that needed no request to the exchange. A request whose rows
        were still being fetched when it was answered needed one.
        """
        return {
            "requests": {source: self.requests[source] for source in SOURCES},
            "rows": {source: self.rows[source] for source in SOURCES},
            "hit_rate": {"requests": _hits(self.requests), "rows": _hits(self.rows)},
            "encoded": {
                "answers": len(answers),
                "bytes": answers.bytes,
                "most_bytes": answers.most_bytes,
                "hits": answers.hits,
                "misses": answers.misses,
            },
        }


def _hits(counts: Counter[str]) -> float | None:
    total = sum(counts.values())
    return round(1 - counts["exchange"] / total, 6) if total else None


class _OfCache(Collector):
    def __init__(self, answers: AnswerCache) -> None:
        self._answers = answers

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("market_data_answer_cache_bytes", "Bytes of cached answers.", self._answers.bytes)
        yield GaugeMetricFamily("market_data_answer_cache_answers", "Number of cached answers.", len(self._answers))
