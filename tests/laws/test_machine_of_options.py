"""The laws under random programs, for pools with all the other options at once: what decides when a job can start.

Lists of limits with weights, slots and keys; a breaker; resources that are checked and grow old; times to wait, and to
run; streams with limits, and batches. The programs of `test_machine.py`, with more that can happen.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from asyncpool import (
    Cancelled,
    DeadlineExceeded,
    Failed,
    PoolClosed,
    PoolError,
    Retry,
    TooManyFailures,
    batches,
)
from tests.laws.budget import IS_LONG, MACHINE_STEPS, OPTIONS_EXAMPLES
from tests.laws.schedules.breakers import Backend, Log, check_held, make_breaker
from tests.laws.schedules.limits import Limits, meter_of, use_from_outside
from tests.laws.schedules.resources import CHECKS, Server, any_rules, check_places
from tests.laws.test_machine import ANY_SIZE, KINDS, RETRIES, PoolMachine, Reading
from tests.laws.witness import FACTORIES, HANDED_BACK, Item, Letters, Meter

TIMEOUTS = (None, 0.5, lambda item: (None, 0.3, 1.1)[item.n % 3])


class OptionsMachine(PoolMachine):
    """What can be done to a pool with all options, and what must be true of it after each step."""

    limits: Limits | None = None
    server: Server | None = None
    log: Log | None = None
    errors = (*PoolMachine.errors, OSError, ExceptionGroup, PoolError)

    @initialize(
        seed=st.integers(0, 1000),
        workers=ANY_SIZE,
        queue_size=st.sampled_from((0, 1, 2, 5)),
        has_limits=st.booleans(),
        has_breaker=st.booleans(),
        has_resource=st.booleans(),
        timeout=st.sampled_from(TIMEOUTS),
        queue_timeout=st.sampled_from((None, None, 0.05, 0.4)),
        retry=RETRIES,
        max_delayed=st.sampled_from((1, 2, 10_000)),
        letters=st.sampled_from((None, 100)),
        has_priority=st.booleans(),
        observe=st.booleans(),
        ends_in_peace=st.booleans(),
    )
    def start(  # type: ignore[override]
        self,
        seed: int,
        workers: Any,
        queue_size: int,
        has_limits: bool,
        has_breaker: bool,
        has_resource: bool,
        timeout: Any,
        queue_timeout: float | None,
        retry: Retry | None,
        max_delayed: int,
        letters: int | None,
        has_priority: bool,
        observe: bool,
        ends_in_peace: bool,
    ) -> None:
        self.random = Random(seed)
        self.queue_size, self.retry, self.ends_in_peace = queue_size, retry, ends_in_peace
        self.may_come_back = retry is not None or has_limits or has_breaker
        self.is_scaled = not isinstance(workers, int)
        self.backend = Backend(self.random)
        self.inside: Counter[object] = Counter()  # how many handlers run, by the limit that they have a slot of
        self.most = 2  # slots that can be held, of the limit whose number changes
        if has_breaker and timeout is not None:
            timeout = 1.5  # more than any job takes: one that always times out is put back without end
        options: dict[str, Any] = {"timeout": timeout, "queue_timeout": queue_timeout, "retry": retry}
        if has_limits:
            self._limit(options)
        if has_breaker:
            breaker = make_breaker(self.random)
            self.log = Log(breaker)
            self.backend.serve(self.witness)
            options |= {"breaker": breaker, "observers": [self.log.watch("pool")]}
        if has_resource:
            server = self.server = Server(self.random, self.witness, failing=self.random.choice((0.0, 0.3)))
            server.kinds = self.random.choice((("says",), ("turn", "slow"), CHECKS))
            self.witness.checks_resources = self.is_scaled = True  # a worker can lose its resource at any time
            options["resource"] = server.resource(check=server.check, **any_rules(self.random))
        if has_priority:
            options["priority"] = lambda item: item.n % 3
        options |= {"max_delayed": max_delayed, "dead_letters": None if letters is None else Letters(letters)}
        self.pool = self.witness.make_pool(
            workers=workers, queue_size=queue_size, handler=self._handle, observe=observe, **options
        )
        self.wait_for(self.pool.start())

    def _resize(self, workers: Any) -> None:
        super()._resize(workers)
        self.is_scaled |= self.server is not None

    def _limit(self, options: dict[str, Any]) -> None:
        limits = self.limits = Limits(self.random)
        options["limiter"], self.limits_of = limits.draw()
        self.witness.meter_of = partial(meter_of, limits, self.limits_of)
        self.hosts = [Meter(20.0, 1.0, 2, partial(limits.hosts, Item(key))) for key in range(2)]
        self.witness.meters = self.hosts

    async def _handle(self, item: Item, *resource: Any) -> int:
        """Check that the job can start now, and do what it says."""
        limits = self.limits
        own = [] if limits is None else self.limits_of(item)
        try:
            if limits is not None and limits.hosts(item) in own:
                self.hosts[item.n % 2].starts.append(asyncio.get_running_loop().time())
            self.inside.update(own)
            self._check_slots()
            if self.server is not None:
                return await self.server.handle(item, *resource)
            return await self.witness.handle(item)
        except AssertionError as error:
            self.witness.problems.append(f"{item}: {error}")
            raise
        finally:
            self.inside.subtract(own)

    def _check_slots(self) -> None:
        limits = self.limits
        if limits is None:
            return
        self.most = max(limits.count, min(self.most, limits.all.in_use))
        assert limits.all.in_use <= self.most, f"{limits.all.in_use} slots of {limits.all}"
        assert self.inside[limits.all] + limits.held[limits.all] <= limits.all.in_use
        for key in range(3):
            limit = limits.keys(Item(key))
            assert self.inside[limit] + limits.held[limit] <= limit.in_use <= 1, f"key {key}"

    # -- Limits ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.limits)
    @rule(which=st.integers(0, 1), amount=st.sampled_from((-3, -1, 0.5, 1, 5)))
    def charge(self, which: int, amount: float) -> None:
        assert self.limits is not None
        usage = self.limits.rates[which]
        self.do(lambda: usage.charge(amount))
        self.is_settled = False

    @precondition(lambda self: self.limits)
    @rule(which=st.integers(0, 1), rate=st.sampled_from((3.0, 20.0, 80.0)), burst=st.integers(1, 3))
    def change_a_rate(self, which: int, rate: float, burst: int) -> None:
        limits = self.limits
        assert limits is not None
        self.do(lambda: limits.rates[which].change(rate, burst=1 if limits.is_heavy else burst))
        self.is_settled = False

    @precondition(lambda self: self.limits)
    @rule(which=st.integers(0, 1), seconds=st.sampled_from((0.0, 0.01, 0.3)))
    def pause_a_rate(self, which: int, seconds: float) -> None:
        assert self.limits is not None
        usage = self.limits.rates[which]
        self.do(lambda: usage.pause_for(seconds))
        self.is_settled = False

    @precondition(lambda self: self.limits)
    @rule(count=st.integers(1, 3))
    def change_the_slots(self, count: int) -> None:
        limits = self.limits
        assert limits is not None
        self._check_slots()
        limits.count = count
        self.most = max(self.most, count)
        self.do(lambda: limits.all.change(count))
        self.is_settled = False

    @precondition(lambda self: self.limits)
    @rule()
    def use_a_limit_from_outside(self) -> None:
        assert self.limits is not None
        self.tasks.append(self.spawn(partial(use_from_outside, self.limits, self.random)))
        self.is_settled = False

    # -- The backend and its breaker, the resources ------------------------------------------------------------------

    @precondition(lambda self: self.log)
    @rule(is_down=st.booleans())
    def the_backend_changes(self, is_down: bool) -> None:
        self.backend.is_down = is_down

    @precondition(lambda self: self.log)
    @rule(seconds=st.sampled_from((None, 0.01, 0.3)))
    def open_the_breaker(self, seconds: float | None) -> None:
        assert self.log is not None
        breaker = self.log.breaker
        self._room_may_go()
        self.do(lambda: breaker.open(seconds))
        self.is_settled = False

    @precondition(lambda self: self.log)
    @rule()
    def close_the_breaker(self) -> None:
        assert self.log is not None
        self.do(self.log.breaker.close)
        self.is_settled = False

    @precondition(lambda self: self.log)
    @rule()
    def resume_by_force(self) -> None:
        with suppress(PoolClosed):
            self.do(partial(self.pool.resume, force=True))
            self.is_paused = False
            self.witness.pause_ends = min(self.witness.pause_ends, self.loop.time())
        self.is_settled = False

    @precondition(lambda self: self.server)
    @rule()
    def connections_die(self) -> None:
        assert self.server is not None
        self.server.kill()

    # -- Waiting jobs ------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.is_closing)
    @rule(parity=st.sampled_from((None, 0, 1)))
    def cancel_queued(self, parity: int | None) -> None:
        def act() -> None:
            waiting = [entry.job for entry in self.pool.queued() if parity in (None, entry.job.n % 2)]
            where = None if parity is None else lambda item: item.n % 2 == parity
            assert self.pool.cancel_queued(where) == len(waiting)
            self.user_cancelled.update(item.n for item in waiting)

        self.do(act)
        self.is_settled = False

    @precondition(lambda self: not self.is_closing)
    @rule(limit=st.sampled_from((None, 1)))
    def look(self, limit: int | None) -> None:
        def act() -> None:
            stats, queued, running = self.pool.stats, self.pool.queued(limit), self.pool.running()
            assert len(queued) == min(limit or 10_000, stats.queued + stats.delayed)
            assert len(running) == stats.running
            assert len({entry.id for entry in (*queued, *running)}) == len(queued) + len(running)

        self.do(act)

    # -- Streams -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.streams) < 4 and not self.is_closing)
    @rule(
        raises=st.booleans(),
        is_ordered=st.booleans(),
        kinds=st.lists(KINDS, max_size=8),
        max_failures=st.sampled_from((None, 0, 1, 0.5)),
        deadline=st.sampled_from((0.01, 0.4, 5.0)),
    )
    def make_a_limited_stream(
        self, raises: bool, is_ordered: bool, kinds: list[str], max_failures: float | None, deadline: float
    ) -> None:
        reading = Reading(None, is_ordered=is_ordered and not raises, raises=raises)
        make: Any = self.pool.map if raises else self.pool.outcomes
        source = self._source(reading, [self.witness.item(kind) for kind in kinds], False)
        reading.what = self.do(lambda: make(source, ordered=is_ordered, max_failures=max_failures, deadline=deadline))
        reading.front = self.do(lambda: aiter(reading.what))
        reading.is_limited = True
        self.streams.append(reading)

    def _check_reading(self, reading: Reading) -> None:
        end = reading.end
        if reading.is_limited and isinstance(end, (TooManyFailures, DeadlineExceeded)):
            went_in, came_out = [item.n for item in reading.went_in], reading.came_out
            assert len(set(map(id, came_out))) == len(came_out)
            assert reading.raises or {entry.job.n for entry in came_out} == set(went_in), f"{end!r}, not all delivered"
        elif reading.is_limited and reading.raises:
            assert set(reading.came_out) <= {item.n for item in reading.went_in}  # failures are not delivered
        else:
            super()._check_reading(reading)

    @precondition(lambda self: not self.is_closing)
    @rule(kinds=st.lists(KINDS, min_size=1, max_size=8), size=st.integers(1, 3), seconds=st.sampled_from((None, 0.02)))
    def read_batches(self, kinds: list[str], size: int, seconds: float | None) -> None:
        items = [self.witness.item(kind) for kind in kinds]
        stream = self.do(lambda: self.pool.map(self.witness.source(items), ordered=True, max_failures=100))

        async def use() -> None:
            read: list[int] = []
            with suppress(*self.errors):
                async with batches(stream, size, seconds) as grouped:
                    async for batch in grouped:
                        assert 1 <= len(batch) <= size
                        read += batch
            assert read == sorted(set(read))
            assert set(read) <= {item.n for item in items}

        self.tasks.append(self.spawn(use))
        self.is_settled = False

    # -- The laws ----------------------------------------------------------------------------------------------------

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        if self.limits is not None:
            self.do(self._check_slots)
        if self.log is not None:
            assert not self.log.problems, self.log.problems

    def check_settled(self) -> None:
        super().check_settled()
        if self.log is not None and not self.is_closing:
            check_held(self.pool, self.log.breaker)
        if self.server is not None:
            check_places(self.pool, is_settled=not self.is_closing)
        self.do(self._check_parked)

    def _check_parked(self) -> None:
        """Check that no job is parked that a worker could run now."""
        parts = self.pool._parts
        if parts.lanes is None or self.pool.is_paused or not parts.workers.idle:
            return
        assert self.witness.meter_of is not None
        late = [job for job in parts.lanes if not self.witness.meter_of(job.input).is_closed()]
        assert not late, f"their limits are open, a worker idles, and they wait: {late}"

    async def _end(self) -> None:
        self.backend.is_down = False
        await super()._end()
        if self.limits is not None:
            for usage in self.limits.rates:
                usage.check()
                assert not usage.users
            assert not self.limits.all.in_use
            assert not self.limits.all.users
            assert not any(self.limits.keys(Item(key)).in_use for key in range(3))
        if self.server is not None:
            await asyncio.sleep(20.0)
            assert not self.server.held
        if self.log is not None:
            assert not self.log.breaker._users

    def _check_own(self, item: Item, outcome: Any) -> None:
        match outcome:
            case Cancelled(_, reason):
                assert reason in HANDED_BACK or item.n in self.user_cancelled, outcome
            case Failed(_, error):
                is_harmless = item.kind in ("ok", "turn", "nap")
                outside = (PoolError, OSError, ExceptionGroup)  # errors of the backend, and of a dead connection
                assert not is_harmless or isinstance(error, outside) or self.server is not None, outcome


def machine_for(mode: str) -> type[OptionsMachine]:
    return type(f"OptionsMachine_{mode}", (OptionsMachine,), {"mode": mode})


@pytest.mark.parametrize("mode", FACTORIES)
def test_the_laws_hold_in_random_programs_with_all_options(mode: str) -> None:
    share = 1.0 if mode == "default" else 0.2
    run_state_machine_as_test(
        machine_for(mode),
        settings=settings(
            max_examples=int(OPTIONS_EXAMPLES * share),
            stateful_step_count=MACHINE_STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            derandomize=not IS_LONG,
            suppress_health_check=list(HealthCheck),
        ),
    )
    gc.collect()  # here, where the log is silent: failures that nobody has read
