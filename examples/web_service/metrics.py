"""What `/metrics` exports beside the statistics of the pool. `alerts.yml` has alerts for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from asyncpool import WorkerPool
from asyncpool.prometheus import PoolCollector
from examples.web_service.refusals import REASONS, Reason

__all__ = ["Metrics"]


class Metrics:
    """The metrics of one service, in a registry of their own, so that a process can have several services.

    Args:
        pool: The pool of the service.
        gauges: The description of each gauge, and what returns its value, by its name.
    """

    def __init__(self, pool: WorkerPool[Any, Any], gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(PoolCollector(pool))
        self._answers = Counter("http_answers", "Requests answered.", ["status"], registry=self.registry)
        self._rejections = Counter(
            "thumbnail_rejections", "Requests rejected, by reason.", ["reason"], registry=self.registry
        )
        for reason in REASONS:
            self._rejections.labels(reason)  # exported from the start: a rate needs a first value
        for name, (description, value) in gauges.items():
            Gauge(name, description, registry=self.registry).set_function(value)

    def count_answer(self, status: int) -> None:
        """Count a response that was written."""
        self._answers.labels(status).inc()

    def count_rejection(self, reason: Reason) -> None:
        """Count a request that is rejected."""
        self._rejections.labels(reason).inc()
