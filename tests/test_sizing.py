"""`recommended_workers`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from asyncpool import recommended_workers


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [
        ({"seconds": 0.2, "rate": 100}, 20),
        ({"seconds": 0.2, "rate": 101}, 21),
        ({"seconds": 0.07, "rate": 100}, 7),
        ({"seconds": 0.001, "rate": 1}, 1),
        ({"seconds": 1, "cpu_seconds": 0.01}, 100),
        ({"seconds": 1, "cpu_seconds": 1}, 1),
        ({"seconds": 1, "limit": 7}, 7),
        ({"seconds": 1, "rate": 1000, "limit": 7}, 7),
        ({"seconds": 1, "rate": 1000, "cpu_seconds": 0.1, "limit": 50}, 10),
        ({"seconds": 1, "rate": 0.001}, 1),
    ],
)
def test_the_least_bound_is_recommended(arguments: dict[str, Any], workers: int) -> None:
    assert recommended_workers(**arguments) == workers


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"seconds": 1}, ValueError, "needs at least one of rate, cpu_seconds and limit, got only seconds=1,"),
        ({"seconds": 0, "rate": 1}, ValueError, "seconds must be a finite number of seconds > 0, got 0"),
        ({"seconds": math.nan, "rate": 1}, ValueError, "seconds must be a finite number"),
        ({"seconds": "1", "rate": 1}, TypeError, "seconds must be a number of seconds, got '1'"),
        ({"seconds": 1, "rate": 0}, ValueError, "rate must be a finite number of jobs a second > 0, got 0"),
        ({"seconds": 1, "rate": math.inf}, ValueError, "rate must be a finite number"),
        ({"seconds": 1, "rate": True}, TypeError, "rate must be a number of jobs a second, got True"),
        ({"seconds": 1, "cpu_seconds": 2}, ValueError, "cpu_seconds must be <= seconds, got 2 > 1"),
        ({"seconds": 1, "cpu_seconds": -1}, ValueError, "cpu_seconds must be a finite number of seconds >= 0, got -1"),
        ({"seconds": 1, "limit": 0}, ValueError, "limit must be >= 1, got 0"),
        ({"seconds": 1, "limit": 1.5}, TypeError, "limit must be an int, got 1.5"),
    ],
)
def test_what_is_out_of_range_is_told(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        recommended_workers(**arguments)
    assert text in str(caught.value)
