"""Lets an adaptive cluster grow with the backlog of a pool, which Dask's scheduler does not see."""

from __future__ import annotations

import math
import uuid
from typing import Any

import dask
from dask import utils

__all__ = ["Placeholders"]

_dask: Any = dask  # its functions are not typed
_utils: Any = utils

_MAX = 5000  # tasks: what they cost the scheduler stays small, whatever the configuration says


class Placeholders:
    """Tasks that no worker can run, because each needs a resource that no worker has.

    An adaptive cluster computes from the tasks that wait how many workers there should be. It takes each for
    `unknown-task-duration` seconds (0.5) of work, and wants a thread for each `target-duration` seconds (5).
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._futures: list[Any] = []
        target = _seconds("distributed.adaptive.target-duration")
        self._per_thread: float = target / _seconds("distributed.scheduler.unknown-task-duration")

    def want(self, processes: int, threads: int) -> None:
        """Have the cluster grow to `processes` workers of `threads` threads, if it can. 0: it need not grow."""
        count = min(_MAX, math.ceil(processes * threads * self._per_thread))
        if not count:
            self.clear()
        elif count > len(self._futures):  # it shrinks when nothing waits any longer, and not with each job
            self._futures += self._client.map(
                _nothing,
                range(count - len(self._futures)),
                key=f"asyncpool-backlog-{uuid.uuid4().hex}",
                resources={"asyncpool-backlog": 1},
                pure=False,
            )

    def clear(self) -> None:
        """Want no more workers than there are."""
        for future in self._futures:
            future.release()
        self._futures = []


def _seconds(option: str) -> float:
    seconds: float = _utils.parse_timedelta(_dask.config.get(option))
    return seconds


def _nothing(number: int) -> None:
    """Is never called."""
