"""The columns of the table: asyncpool, handwritten recipes, and the other libraries."""

from __future__ import annotations

from benchmarks.gauntlet import peers, recipes
from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.ours import Ours
from benchmarks.installed import installed

LIBRARIES: dict[str, Library] = {
    library.name: library
    for library in (
        Ours(),
        recipes.GatherAndSemaphore(),
        recipes.TaskGroupAndSemaphore(),
        recipes.QueueWorkers(),
        peers.Aqute(),
        peers.Aiometer(),
        peers.Aiostream(),
        peers.Streamable(),
        peers.Aiojobs(),
        peers.AsyncioPoolNg(),
        peers.Tasklane(),
        peers.Pypeln(),
        peers.Aioitertools(),
        peers.AntFlow(),
        peers.Aiolimiter(),
    )
}


def is_installed(library: Library) -> bool:
    """Return whether the library is installed."""
    return library.distribution is None or installed(library.distribution) is not None
