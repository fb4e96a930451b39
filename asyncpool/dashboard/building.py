"""Checks the arguments that all kinds of dashboards have in common, and builds the views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asyncpool._guard import describe
from asyncpool.dashboard.access import Access
from asyncpool.dashboard.views import Views
from asyncpool.journal.journal import Journal
from asyncpool.pool import WorkerPool

__all__ = ["build_views"]


def build_views(
    pools: Sequence[WorkerPool[Any, Any]],
    *,
    journals: Iterable[Journal[Any]],
    actions: bool,
    token: str | None,
    allowed_hosts: Iterable[str],
    title: str,
    stream_seconds: float | None = None,
) -> Views:
    """Return the views of a dashboard.

    Raises:
        TypeError, ValueError: An argument is not valid.
    """
    if not pools:
        raise TypeError("a dashboard needs at least one WorkerPool")
    for pool in pools:
        if not isinstance(pool, WorkerPool):
            raise TypeError(f"a dashboard shows WorkerPools, got {describe(pool)}")
    if isinstance(journals, Journal) or not isinstance(journals, Iterable):
        raise TypeError(f"journals must be a sequence of Journals, got {describe(journals)}")
    journals = tuple(journals)
    for journal in journals:
        if not isinstance(journal, Journal):
            raise TypeError(f"journals must be Journals, got {describe(journal)}")
    if not isinstance(actions, bool):
        raise TypeError(f"actions must be a bool, got {describe(actions)}")
    if not isinstance(title, str):
        raise TypeError(f"title must be a str, got {describe(title)}")
    access = Access(token, allowed_hosts)
    if actions and not access.needs_token:
        # Not a random one: it would have to be printed, and each process of a server would have another.
        raise ValueError("actions=True needs a token: pass token=secrets.token_urlsafe(), or one from your settings")
    return Views(pools, journals, access, actions=actions, title=title, stream_seconds=stream_seconds)
