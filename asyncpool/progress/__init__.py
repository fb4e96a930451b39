"""The progress of a stream, as a bar or as lines, and a summary of what a pool did (extra `progress`).

    from asyncpool.progress import summary, track

    async with WorkerPool(fetch, workers=20) as pool:
        async for page in track(pool.map(urls)):
            ...
    print(summary(pool))

`progress=True` of `asyncpool.map`, `asyncpool.outcomes`, `pool.map` and `pool.outcomes` is the short form of `track`.
`track` needs the package rich; `summary` does not.
"""

from asyncpool.progress.summaries import PoolSummary, summary
from asyncpool.progress.tracking import track

__all__ = ["PoolSummary", "summary", "track"]
