"""Where a pool's attempts run if not in the program's own process: the contract of an engine, and what travels.

`asyncpool.Processes` and `asyncpool.dask.Dask` are engines. docs/scale-out.md shows how to write another.
"""

from asyncpool.engines.contract import ContextCarrier, Engine, EngineHost, Process

__all__ = ["ContextCarrier", "Engine", "EngineHost", "Process"]
