"""Scaling policies, which decide how many workers a pool has, and the types of their arguments and results.

Policies are pure: figures in, a number of workers out. `_core/scaler.py` calls them and applies the result.
"""

from asyncpool.scaling.adaptive import Adaptive
from asyncpool.scaling.autoscale import AutoScale
from asyncpool.scaling.function import FunctionPolicy
from asyncpool.scaling.policy import Decide, Decision, FixedSize, PoolLoad, ScalingPolicy, Workers
from asyncpool.scaling.sizing import recommended_workers

__all__ = [
    "Adaptive",
    "AutoScale",
    "Decide",
    "Decision",
    "FixedSize",
    "FunctionPolicy",
    "PoolLoad",
    "ScalingPolicy",
    "Workers",
    "recommended_workers",
]
