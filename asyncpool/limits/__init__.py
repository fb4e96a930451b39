"""Limits of attempts: how often they can start, and how many can run at the same time.

`rate.py` and `concurrency.py` have the limits, `keyed.py` a limit for each key, `line.py` the line of those that wait
for one, and `limiter.py` what the option `limiter` can be. How a pool waits is `_core/pauses.py` and `_core/lanes.py`.
"""

from asyncpool.limits.concurrency import ConcurrencyLimit, KeyedConcurrencyLimit
from asyncpool.limits.limiter import Limiter
from asyncpool.limits.rate import KeyedRateLimit, RateLimit

__all__ = ["ConcurrencyLimit", "KeyedConcurrencyLimit", "KeyedRateLimit", "Limiter", "RateLimit"]
