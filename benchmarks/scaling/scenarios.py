"""The scenarios: backends and loads that a policy must handle."""

from __future__ import annotations

from asyncpool import Retry
from benchmarks.scaling import loads
from benchmarks.scaling.backends import Changing, Drifting, RateLimited, Servers, Thrashing
from benchmarks.scaling.services import Lognormal, Mix, Pareto
from benchmarks.scaling.simulate import Scenario

__all__ = ["BACKLOGGED", "OPEN", "SCENARIOS"]

SERVICE = Lognormal(0.050)
PHASE = 120.0


def servers(count: int) -> Scenario:
    """Return a scenario with this many servers and an endless backlog."""
    return Scenario(
        name="servers" if count == 20 else f"servers ({count})",
        about="twenty servers behind a queue",
        backend=lambda random: Servers(count, SERVICE, random=random),
        load=loads.backlogged,
    )


TEN, TWENTY, FORTY = servers(10), servers(20), servers(40)
PHASES = ((0.0, TWENTY), (PHASE, TEN), (2 * PHASE, TWENTY), (3 * PHASE, FORTY), (4 * PHASE, TWENTY))
SCHEDULE = ((0.0, 20), (PHASE, 10), (2 * PHASE, 20), (3 * PHASE, 40), (4 * PHASE, 20))

BACKLOGGED = (
    TWENTY,
    Scenario(
        name="thrashing",
        about="a database that thrashes past its knee",
        backend=lambda random: Thrashing(SERVICE, contention=0.02, coherence=0.98 / 400, random=random),
        load=loads.backlogged,
    ),
    Scenario(
        name="rate-limited",
        about="an API that answers 429 above its rate",
        backend=lambda random: RateLimited(200.0, 20, Lognormal(0.100), random=random),
        load=loads.backlogged,
        retry=Retry(attempts=1_000_000, backoff=0.0, jitter=False),  # the API chooses the delay, with jitter
    ),
    Scenario(
        name="changing",
        about="servers whose number is halved and doubled",
        backend=lambda random: Changing(SCHEDULE, SERVICE, random=random),
        load=loads.backlogged,
        seconds=5 * PHASE,
        phases=PHASES,
    ),
    Scenario(
        name="heavy-tailed",
        about="service times of a bounded Pareto distribution",
        backend=lambda random: Servers(20, Pareto(0.050), random=random),
        load=loads.backlogged,
    ),
    Scenario(
        name="mixed",
        about="nine jobs of 10 ms to one of 200 ms",
        backend=lambda random: Servers(20, Mix(((0.9, 0.010), (0.1, 0.200))), random=random),
        load=loads.backlogged,
    ),
    Scenario(
        name="drifting",
        about="service times that double within ten minutes",
        backend=lambda random: Drifting(20, SERVICE, doubling=600.0, random=random),
        load=loads.backlogged,
        seconds=600.0,
    ),
)
"""Scenarios with an endless backlog: the throughput depends only on the number of workers."""


def _open(name: str, about: str, load: loads.Load, *, seconds: float = 300.0, settle: float = 60.0) -> Scenario:
    return Scenario(
        name=name,
        about=about,
        backend=TWENTY.backend,
        load=load,
        seconds=seconds,
        settle=settle,
        max_workers=20,
        best=20,
    )


OPEN = (
    _open("steady", "300 jobs/s", loads.steady(300.0)),
    _open("burst", "100 jobs/s, but 600 from 90 s to 120 s", loads.burst(100.0, 600.0, begin=90.0, end=120.0)),
    _open("ramp", "from 40 jobs/s at 60 s to 380 at 240 s", loads.ramp(40.0, 380.0, begin=60.0, end=240.0)),
    _open(
        "on-off",
        "440 jobs/s for 60 s, then none for 120 s",
        loads.on_off(440.0, on=60.0, off=120.0),
        seconds=540.0,
        settle=0.0,
    ),
    _open(
        "on-off-light",
        "300 jobs/s for 60 s, then none for 120 s",
        loads.on_off(300.0, on=60.0, off=120.0),
        seconds=540.0,
        settle=0.0,
    ),
)
"""Scenarios with arrivals: the figure that matters is the waiting time. The backend is twenty servers, 400 jobs/s; the
fixed size is 20 workers."""

SCENARIOS = {scenario.name: scenario for scenario in (*BACKLOGGED, *OPEN)}
