"""How many workers a pool has: policies that decide it, and what they see and answer.

Pure: a policy sees numbers and answers with a number. When it is asked, and what the pool does with the answer, is
`_core/scaler.py`.
"""

from asyncpool.scaling.adaptive import Adaptive
from asyncpool.scaling.autoscale import AutoScale
from asyncpool.scaling.policy import Decide, Decision, FixedSize, PoolLoad, ScalingPolicy, Workers
from asyncpool.scaling.sizing import recommended_workers

__all__ = [
    "Adaptive",
    "AutoScale",
    "Decide",
    "Decision",
    "FixedSize",
    "PoolLoad",
    "ScalingPolicy",
    "Workers",
    "recommended_workers",
]
