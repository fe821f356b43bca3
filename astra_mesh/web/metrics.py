"""Figures for Prometheus. Each API has a registry of its own; labels come from fixed lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from astra_mesh.web.reports import Summary

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """The figures of one API."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "astra_mesh_api_requests",
            "Requests of the API that ended, by address and HTTP status (499: the caller left); "
            "without /metrics and /health.",
            ["path", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "astra_mesh_api_request_seconds",
            "How long a request of the API took, in all.",
            ["path"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.running = Gauge(
            "astra_mesh_api_running", "Requests of the API that run now.", registry=registry
        )
        self._prompt = Counter(
            "astra_mesh_prompt_tokens", "Tokens that models read.", registry=registry
        )
        self._new = Counter("astra_mesh_new_tokens", "Tokens that models made.", registry=registry)
        self._prefill = Histogram(
            "astra_mesh_prefill_seconds",
            "Time to the first token, the labels or the vector, by what the plan predicted and "
            "what it took.",
            ["kind"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._code_bytes = Counter(
            "astra_mesh_code_bytes", "Bytes of codes that peers sent each other.", registry=registry
        )
        self._peers = Gauge(
            "astra_mesh_peers", "Peers in the mesh, this one included.", registry=registry
        )
        self._models = Gauge(
            "astra_mesh_models", "Models that this peer offers.", registry=registry
        )

    def ended(self, path: str, status: int, took_s: float) -> None:
        """A request of the API ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(took_s)

    def note(self, summaries: Iterable[Summary]) -> None:
        """Requests of the mesh ended."""
        for one in summaries:
            self._prompt.inc(one.prompt_tokens)
            self._new.inc(one.new_tokens)
            if one.report is not None:
                self._prefill.labels("predicted").observe(one.report.predicted_s)
                self._prefill.labels("actual").observe(one.report.actual_s)
                sent = (sum(peer.sent_bytes.values()) for peer in one.report.peers)
                self._code_bytes.inc(sum(sent))

    def text(self, peers: int, models: int) -> bytes:
        """All figures as Prometheus reads them."""
        self._peers.set(peers)
        self._models.set(models)
        return generate_latest(self._registry)
