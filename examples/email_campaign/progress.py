"""Show the progress of a campaign twice a second: as lines, or as a bar on a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import rich.console
import rich.progress

from asyncpool.stats import PoolStats
from examples.email_campaign.campaign import EmailCampaign

__all__ = ["show_progress"]

INTERVAL = 0.5


@asynccontextmanager
async def show_progress(campaign: EmailCampaign) -> AsyncGenerator[None]:
    """Show the progress of the campaign while the block runs."""
    task = asyncio.create_task(_show(campaign), name="progress")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()  # raise the error if it could not print


async def _show(campaign: EmailCampaign) -> None:
    console = rich.console.Console(highlight=False)
    if not console.is_terminal:
        while True:
            await asyncio.sleep(INTERVAL)
            stats = campaign.pool.stats
            print(f"Progress: {_processed(stats):,}/{campaign.total:,} mails, {_figures(stats)}", flush=True)
    columns = (
        rich.progress.BarColumn(bar_width=None),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[figures]}"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("mails", total=campaign.total, figures="")
        while True:
            stats = campaign.pool.stats
            bar.update(task, completed=_processed(stats), figures=_figures(stats))
            await asyncio.sleep(INTERVAL)


def _processed(stats: PoolStats) -> int:
    return stats.succeeded + stats.failed


def _figures(stats: PoolStats) -> str:
    waiting = f", {stats.delayed:,} waiting for a retry" if stats.delayed else ""
    return f"{stats.succeeded:,} sent, {stats.failed:,} failed{waiting} ({stats.throughput:.1f} mails/s)"
