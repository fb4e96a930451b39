"""Synchronous functions as handlers of a pool, in threads or processes."""

from asyncpool.offload.call import Offloaded, offload

__all__ = ["Offloaded", "offload"]
