"""Scenarios of lists of limits: weights, charges, changes, slots, and everything that shares them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from asyncpool import (
    ConcurrencyLimit,
    KeyedConcurrencyLimit,
    KeyedRateLimit,
    PoolClosed,
    PoolDeadlock,
    RateLimit,
    WeightTooLarge,
)
from asyncpool.testing import settle
from tests.laws.schedules.tools import all_done, pass_time, patience, scenario, sizes, turns
from tests.laws.witness import RETRIED, Item, Meter, Witness, ended, spawn

WEIGHTS = (1, 1, 2, 2.5, 7)


def now() -> float:
    return asyncio.get_running_loop().time()


class Usage(RateLimit):
    """A rate limit with a second account of what was used of it, and of what it allowed, kept in plain starts."""

    def __init__(self, rate: float, burst: int, weight: Callable[[Any], float] | None) -> None:
        super().__init__(rate, burst=burst, weight=weight)
        self.entries: list[tuple[float, str, float, float]] = [(0.0, "change", rate, burst)]

    def take(self, now: float, weight: float = 1.0) -> float:
        seconds = super().take(now, weight)
        if not seconds:
            self.entries.append((now, "start", weight, 0.0))
        return seconds

    def take_turn(self, now: float, waiter: Any) -> bool:
        taken = super().take_turn(now, waiter)
        if taken:
            self.entries.append((now, "start", 1.0, 0.0))
        return taken

    def give_back(self, weight: float) -> None:
        self.entries.append((now(), "use", -weight, 0.0))
        super().give_back(weight)

    def charge(self, amount: float) -> None:
        self.entries.append((now(), "use", amount, 0.0))
        super().charge(amount)

    def change(self, rate: float, per: float | None = None, burst: int | None = None) -> None:
        assert burst is not None
        self.entries.append((now(), "change", rate, burst))
        super().change(rate, per, burst)

    def pause_for(self, seconds: float) -> None:
        self.entries.append((now(), "pause", now() + seconds, 0.0))
        super().pause_for(seconds)

    def check(self) -> None:
        """Check each start: the level of the bucket before it left room for it, and no pause was on.

        The level is how much more was used than the rate allows, in that window before now in which this is the most.
        So this is a check of all windows.
        """
        rate, burst, level, at, paused_until = 1.0, 1, 0.0, 0.0, -1.0
        for when, what, amount, extra in self.entries:
            level, at = max(0.0, level - (when - at) * rate), when
            match what:
                case "start":
                    assert level <= burst - min(amount, burst) + 1e-6, f"{self}: {level} is used at {when}"
                    assert when >= paused_until, f"{self}: started in a pause, at {when}"
                    level += amount
                case "use":
                    level = max(0.0, level + amount)
                case "change":
                    rate, burst = amount, int(extra)
                case _:
                    paused_until = max(paused_until, amount)


class Limits:
    """Several limits, and which of them a job of a pool has. It stands for a meter, as far as a witness asks."""

    def __init__(self, random: Random) -> None:
        self.random = random
        # With a burst, light jobs wait behind a heavy one although the limit is open for them. So only one of the two.
        is_heavy = random.random() < 0.5
        self.rates = [
            Usage(
                random.choice((4.0, 50.0)), 1 if is_heavy else random.randint(1, 3), self.weight if is_heavy else None
            )
            for _ in range(2)
        ]
        self.is_heavy = is_heavy
        self.keys: KeyedConcurrencyLimit = ConcurrencyLimit.per_key(lambda item: item.n % 3, 1)
        self.hosts: KeyedRateLimit = RateLimit.per_key(lambda item: item.n % 2, 20.0, burst=2)
        self.all, self.count = ConcurrencyLimit(2), 2
        # Of the slots: how many are inside, by the limit. The limit of a key is looked up: an idle one is forgotten.
        self.held: Counter[object] = Counter()

    @staticmethod
    def weight(item: Item) -> float:
        return WEIGHTS[item.n % len(WEIGHTS)]

    def draw(self) -> tuple[Any, Callable[[Item], list[Any]]]:
        """Return a limiter, and a function that says which limits a job has under it."""
        random = self.random
        chosen = random.sample([self.rates[0], self.rates[1], self.keys, self.hosts, self.all], random.randint(1, 4))

        def limits_of(item: Item) -> list[Any]:
            return [
                limit(item) if isinstance(limit, (KeyedConcurrencyLimit, KeyedRateLimit)) else limit for limit in chosen
            ]

        match random.randint(0, 2):
            case 0:
                return (chosen, limits_of)
            case 1:
                return (lambda item: [*chosen] if item.n % 4 else None), (
                    lambda item: limits_of(item) if item.n % 4 else []
                )
            case _:
                some = chosen.pop()
                found = limits_of
                limiter = [*chosen, lambda item: some if item.n % 2 else None]

                def with_some(item: Item) -> list[Any]:
                    extra = some(item) if isinstance(some, (KeyedConcurrencyLimit, KeyedRateLimit)) else some
                    return found(item) + ([extra] if item.n % 2 else [])

                return limiter, with_some


class _Meter:
    """The limits of a job, as one, for a witness."""

    def __init__(self, limits: Limits, own: list[Any], item: Item) -> None:
        self._weight = limits.weight(item) if limits.is_heavy else 1.0
        self._own = own
        self.starts: list[float] = []

    def is_closed(self) -> bool:
        return any(limit.opens_at(self._weight) > now() for limit in self._own)


async def use_from_outside(limits: Limits, random: Random) -> None:
    """Wait for a limit beside the pools."""
    if random.random() < 0.5:
        limit = random.choice((limits.all, limits.keys(Item(random.randint(0, 2)))))
        async with limit:
            limits.held[limit] += 1
            try:
                assert limits.held[limit] <= limit.in_use
                await turns(random, 3)
            finally:
                limits.held[limit] -= 1
        return
    usage, weight = random.choice(limits.rates), random.choice(WEIGHTS)
    try:
        await usage.acquire(weight)
    except WeightTooLarge:
        assert weight > usage.max_weight


def act(limits: Limits, witnesses: list[Witness], random: Random, tasks: list[asyncio.Task[Any]]) -> None:
    """Do one thing or another to the limits or the pools."""
    usage, witness = random.choice(limits.rates), random.choice(witnesses)
    match random.randint(0, 10):
        case 0:
            usage.charge(random.choice((-3, -1, 1, 5, 0.5)))
        case 1:
            usage.change(random.choice((3.0, 20.0, 80.0)), burst=1 if limits.is_heavy else random.randint(1, 3))
        case 2:
            usage.pause_for(random.choice((0.0, 0.01, 0.3)))
        case 3:
            limits.all.change(random.randint(1, 2))
        case 4 | 5:
            tasks.append(spawn(use_from_outside(limits, random)))
        case 6:
            random.choice(tasks).cancel()
        case 7 if witness.handles:
            random.choice(witness.handles).cancel()
        case 8:
            try:
                witness.resize(random.randint(1, 4))
            except PoolClosed:
                pass
        case 9 if len(witnesses) > 1 and random.random() < 0.3:
            witnesses[1].pool.cancel()
        case _:
            tasks.append(spawn(witness.submit(witness.item(*RETRIED))))


class _AsOne(Meter):
    """A limit of all jobs of a pool, for which they wait in the queue."""

    def __init__(self, usage: Usage) -> None:
        super().__init__(1.0, find=lambda: usage)

    def check(self) -> None:
        """`Usage.check` does it."""


def meter_of(limits: Limits, limits_of: Callable[[Item], list[Any]], item: Item) -> Any:
    return _Meter(limits, limits_of(item), item)


@scenario
async def limits_are_shared_changed_and_charged(witness: Witness, random: Random) -> None:
    """No limit is ever exceeded, and what may start does, in all pools that share them, beside code without a pool."""
    limits = Limits(random)
    witnesses = [witness, *(Witness(random) for _ in range(random.choice((0, 1, 1, 3))))]
    for number, one in enumerate(witnesses):
        limiter, limits_of = limits.draw()
        one.meter_of = partial(meter_of, limits, limits_of)
        if isinstance(limiter, list) and len(limiter) == 1 and limiter[0] in limits.rates and not limits.is_heavy:
            one.is_limited_as_one, one.meters = True, [_AsOne(limiter[0])]
        options: dict[str, Any] = {}
        if random.random() < 0.3:
            options["priority"] = lambda item: item.n % 3
        one.make_pool(limiter=limiter, retry=patience(random), name=f"pool {number}", **sizes(random), **options)
        await one.pool.start()
    tasks = [spawn(one.submit(one.item(*RETRIED))) for _ in range(6) for one in witnesses]
    for _ in range(12):
        await pass_time(random)
        act(limits, witnesses, random, tasks)
        if random.random() < 0.3:
            await settle()
            for one in witnesses:
                if one.pool.report is None and one.pool.state == "open":
                    one.check_settled()
    await ended(*tasks)
    if random.random() < 0.7:
        for one in witnesses:
            if one.pool.state == "open":
                await all_done(one.pool)
    for one in witnesses:
        await one.pool.close(drain_timeout=random.choice((0.0, None)))
    for one in witnesses:
        await one.check_end()
    for usage in limits.rates:
        usage.check()
        assert not usage.users
    assert not limits.all.in_use
    assert not limits.all.users
    for key in range(3):
        assert not limits.keys(Item(key)).in_use


@scenario
async def jobs_of_a_key_run_in_their_order(witness: Witness, random: Random) -> None:
    """One after the other, also with a second limit that all of them have; and other keys are not held up."""
    keys = ConcurrencyLimit.per_key(lambda item: item.n % 3, 1)
    limiter: Any = keys
    if random.random() < 0.6:
        limiter = [keys, RateLimit(40.0, burst=random.randint(1, 3)), ConcurrencyLimit(2)]
        random.shuffle(limiter)
    begun: dict[int, list[int]] = {0: [], 1: [], 2: []}
    running: set[int] = set()

    async def handler(item: Item) -> int:
        key = item.n % 3
        assert key not in running, f"two jobs of key {key} run at the same time"
        running.add(key)
        try:
            begun[key].append(item.n)
            return await witness.handle(item)
        finally:
            running.discard(key)

    witness.meter_of = lambda item: None
    pool = witness.make_pool(
        handler=handler, limiter=limiter, retry=None, max_delayed=random.choice((1, 3, 10_000)), **sizes(random)
    )
    async with pool:
        tasks = [spawn(witness.submit(witness.item("ok", "nap", "turn", "fail", "slow"))) for _ in range(15)]
        for _ in range(4):
            await pass_time(random)
            if witness.handles and random.random() < 0.5:
                random.choice(witness.handles).cancel()
        await ended(*tasks)
        numbers = {handle.job.n: handle.id for handle in witness.handles}
        await all_done(pool)
    assert not (await witness.check_end())
    for items in begun.values():
        order = [numbers[item] for item in items if item in numbers]
        assert order == sorted(order)


@scenario
async def slots_are_given_back_however_attempts_end(witness: Witness, random: Random) -> None:
    limits = ConcurrencyLimit(random.randint(1, 2)), ConcurrencyLimit.per_key(lambda item: item.n % 2, 1)
    inside: Counter[int] = Counter()

    async def handler(item: Item) -> int:
        inside[item.n % 2] += 1
        assert inside[item.n % 2] == 1
        try:
            return await witness.handle(item)
        finally:
            inside[item.n % 2] -= 1

    options = {"timeout": 0.5} if random.random() < 0.5 else {}
    witness.meter_of = lambda item: None
    witness.may_abandon = True
    pool = witness.make_pool(handler=handler, limiter=[*limits], retry=patience(random), **options, **sizes(random))
    await pool.start()
    tasks = [spawn(witness.submit(witness.item(*RETRIED, "slow", "stubborn", "hang", "stuck"))) for _ in range(8)]
    for _ in range(6):
        await pass_time(random)
        if witness.handles:
            random.choice(witness.handles).cancel()
    await pool.close(drain_timeout=random.choice((0.0, 0.02)), grace=random.choice((0.0, 0.1)))
    await ended(*tasks)
    held = limits[0].in_use
    assert held == sum(inside.values()), f"{held} slots are held, and {inside} run"
    witness.release.set()
    await settle()
    await asyncio.sleep(2.0)
    await witness.check_end()
    assert not inside.total()
    assert not limits[0].in_use
    assert not limits[0].users
    for key in range(2):
        assert not limits[1](Item(key)).in_use


@scenario
async def jobs_wait_for_jobs_of_their_own_key(witness: Witness, random: Random) -> None:
    """What can never end is ended, and nothing else."""
    keys = ConcurrencyLimit.per_key(lambda job: job[0], 1)
    ended_waits = 0

    async def handler(job: tuple[int, int]) -> int:
        nonlocal ended_waits
        key, depth = job
        await turns(random, 2)
        if depth:
            other = random.randint(0, 2)
            handle = await pool.submit((other, depth - 1))
            await turns(random, 2)
            try:
                await handle
            except PoolDeadlock:
                ended_waits += 1
        return key

    pool = witness.make_pool(handler=handler, limiter=keys, retry=None, observe=False, workers=16)
    async with asyncio.timeout(1000.0), pool:
        for _ in range(random.randint(1, 3)):
            await pool.submit((random.randint(0, 2), random.randint(0, 3)))
        await all_done(pool)
    assert pool.stats.running == pool.stats.delayed == 0
