"""The channel of a journaled stream: it leaves out what is done, and delivers each outcome once it is recorded.

Everything else that a stream does is `_core/feeder.py` and `_core/channel.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

from asyncpool._core.feeder import FedChannel
from asyncpool._core.job import Job, new_job
from asyncpool._core.parts import Parts
from asyncpool._core.run_limits import LimitedChannel
from asyncpool._guard import is_error
from asyncpool.errors import JournalError, PoolClosed
from asyncpool.journal.entries import Entry, FailedJob, Key
from asyncpool.journal.file import Found
from asyncpool.journal.ready_items import ReadyItems, take_ready
from asyncpool.journal.session import JournalSession
from asyncpool.journal.values import pickled, unpickled
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, Succeeded

__all__ = ["JournalChannel", "Tally"]

_MAX_LOOKUP = 256  # keys at a time
_LOOK_AGAIN_AFTER = 1.0  # seconds
_MAX_SECONDS = 0.005  # without a turn for the event loop


class Tally(Protocol):
    """What counts the jobs that are passed over: the journal."""

    skipped: int
    repeated: int


class _Claim(NamedTuple):
    """An input that was pulled, with its key; or with the error of the key function, and no key."""

    input: Any
    key: Key | None
    error: BaseException | None


class JournalChannel(FedChannel[Any]):
    """A channel whose jobs are in a journal.

    * A job is claimed by its key, looked up, and accepted only if it is not done.
    * The outcome of a job is held until it is recorded. So what the reader has seen is never run again.
    * At most twice as many jobs as there are workers are accepted and not recorded, also while the disk stands still
      (test_a_disk_that_stands_still_stops_the_intake). No more can run again after a kill.
    """

    def __init__(
        self,
        parts: Parts,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool,
        raises: bool,
        key_of: Callable[[Any], Key],
        enter: Callable[[], JournalSession],
        tally: Tally,
        keeps_values: bool,
        earlier: bool,
        skip_failed: bool,
    ) -> None:
        super().__init__(parts, source, ordered=ordered, raises=raises)
        self.held = self._held = set[Job]()
        self._key_of = key_of
        self._enter = enter
        self._tally = tally
        self._keeps_values = keeps_values
        self._earlier = earlier  # whether what is done is delivered, and not only passed over
        self._skip_failed = skip_failed
        self._keys: dict[Job, Key] = {}  # of the jobs that are accepted and not recorded
        self._arriving: Key | None = None  # the key of the input that is being accepted
        self._session: JournalSession | None = None
        self._has_left = False  # the session
        self._pulled: deque[Any] = deque()  # pulled and not brought to the pool yet
        self._is_skipping = False  # whether everything looked up last was done
        self._is_broken = False  # whether an outcome could not be recorded
        self._unrecorded: list[Any] = []  # inputs of jobs that succeeded and could not be recorded

    # -- Begin and end -----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Open the journal, then start the feeder."""
        if self._feeder is not None or self.is_cancelled:
            return
        if self._session is None:
            self.parts.state.check_open()  # before a file is created
            self._session = self._enter()
        try:
            await self._session.opened()
            await super().begin()
        except (JournalError, PoolClosed) as error:
            self._leave()
            if is_error(error, JournalError):
                self.cancel()
            raise

    async def finish(self) -> None:
        """Wait until the journal is closed, if nothing else uses it."""
        self._leave_if_over()
        if self._session is not None and self._has_left:
            await self._session.closed()

    async def aclose(self) -> None:
        """Cancel what is queued or runs, and wait until that has ended, is recorded, and the journal is closed."""
        await super().aclose()
        # Not without end: a KeyboardInterrupt in the middle of a report can leave a job in `held`.
        while self._held and self._run.is_busy:
            state = self.parts.state
            await self.parts.wakeups.wait_until(lambda: not self._held, until=state.time() + _LOOK_AGAIN_AFTER)
        await self.finish()

    def cancel(self) -> None:
        """End the channel at once. What runs and succeeds nevertheless is recorded."""
        super().cancel()
        self._leave_if_over()

    def _end_feeding(self, error: BaseException | None) -> None:
        super()._end_feeding(error)
        self._leave_if_over()

    def _leave_if_over(self) -> None:
        """Leave the journal when nothing is to be recorded any more, whether or not the reader has read everything."""
        if not self.live and not self.intake_is_open and self not in self.parts.producers:
            self._leave()

    def _leave(self) -> None:
        if self._session is not None and not self._has_left:
            self._has_left = True
            self._session.leave()

    # -- The source --------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        return min(super()._room(), 2 * max(1, self.parts.workers.target) - (self.live - self._delayed))

    def _batch_size(self) -> int:
        """How many jobs to look up: as many as can be accepted; while all are done, many."""
        return _MAX_LOOKUP if self._is_skipping else max(1, min(_MAX_LOOKUP, self._room()))

    async def _feed_sync(self, iterator: Iterator[Any]) -> bool:
        """Feed from a plain iterator; return whether it is exhausted."""
        is_exhausted = False
        while not self.is_stopped and not is_exhausted:
            await self._wait_for_window()
            try:
                is_exhausted = take_ready(iterator, self._batch_size(), self.parts.state.loop.time, self._pulled)
            finally:
                await self._bring()
        return is_exhausted

    async def _feed_async(self, iterator: AsyncIterator[Any]) -> bool:
        """Feed from an async iterator; return whether it is exhausted."""
        items = ReadyItems(iterator, self.parts.state.loop.time)
        try:
            while not self.is_stopped and not items.is_over:
                await self._wait_for_window()
                try:
                    await self._interruptible(items.take(self._batch_size(), self._pulled))
                finally:
                    await self._bring()
        finally:
            try:
                await items.end(self._pulled)
            finally:
                await self._bring()
        return items.is_over

    async def _wait_for_window(self) -> None:
        if self._room() <= 0:
            await self._interruptible(self.line.wait_turn())

    async def _bring(self) -> None:
        """Bring what was pulled to the pool, without what is done.

        Whatever happens, each input that was pulled is accepted, or passed over because it is done or repeated: no
        input is ever in nobody's hands.
        """
        try:
            while self._pulled and not self.is_stopped:
                await self._wait_for_window()
                claims, awaited = self._claim()
                if claims:
                    await self._look_up(claims)
                elif awaited is not None:
                    await self._interruptible(self._run.released(awaited))
                else:
                    await self._interruptible(asyncio.sleep(0))  # nothing else here has given the loop a turn
        finally:
            while self._pulled:
                job = self._accept(self._pulled.popleft(), None)
                self.parts.cancellation.cancel(job, CancelReason.STREAM)

    @property
    def _run(self) -> JournalSession:
        assert self._session is not None
        return self._session

    def _claim(self) -> tuple[list[_Claim], Key | None]:
        """Claim jobs that were pulled. Where values are delivered, it stops at a key that another job has, and returns
        that key if it is the first: its value must be waited for.
        """
        claims: list[_Claim] = []
        while self._pulled and len(claims) < _MAX_LOOKUP:
            input = self._pulled[0]
            try:
                key = self._key_of(input)
            except BaseException as error:
                claims.append(_Claim(input, None, error))
            else:
                if self._run.claim(key):
                    claims.append(_Claim(input, key, None))
                elif self._earlier:
                    return claims, None if claims else key
                else:
                    self._tally.repeated += 1
                    self.passed_over += 1
            self._pulled.popleft()
        return claims, None

    async def _look_up(self, claims: list[_Claim]) -> None:
        """Look up claimed jobs, and have those accepted that are not done."""
        left = deque(claims)
        try:
            keys = [claim.key for claim in claims if claim.key is not None]
            found = await self._interruptible(self._run.find(keys, values=self._earlier))
            self._is_skipping = len(found.done) == len(claims)
            room, time = 0, self.parts.state.loop.time
            turn_at = time() + _MAX_SECONDS
            while left and not self.is_stopped:
                input, key, _ = claim = left[0]
                if key is not None and self._is_passed_over(key, found):
                    self.passed_over += 1
                    self._run.release(key)
                    left.popleft()
                    continue
                room = room or self._room()
                if room <= 0:
                    return  # the rest is looked up again when the reader has made room
                room -= 1
                if key is not None and key in found.done and self._give(input, found.done[key]):
                    self._tally.skipped += 1
                    self.given += 1
                    self._run.release(key)
                    left.popleft()
                    if time() >= turn_at:  # values can be large
                        await self._interruptible(asyncio.sleep(0))
                        turn_at = time() + _MAX_SECONDS
                    continue
                if self.parts.queue.full():
                    await self._interruptible(self.parts.queue.line.wait_turn())
                    if self.is_stopped:
                        return
                left.popleft()
                if claim.error is None:
                    self._accept(input, key)
                else:
                    self._refuse(input, claim.error)
        finally:
            for claim in reversed(left):
                if claim.key is not None:
                    self._run.release(claim.key)
                self._pulled.appendleft(claim.input)
            del left, claims  # an error of a key function knows this frame

    def _is_passed_over(self, key: Key, found: Found) -> bool:
        """Count a job that is neither run nor delivered, and return True; False for all others."""
        if key in found.done:
            self._tally.skipped += not self._earlier
            return not self._earlier
        self._tally.repeated += key in found.failed_now
        is_skipped = self._skip_failed and key in found.failed
        self._tally.skipped += is_skipped
        return is_skipped or key in found.failed_now

    def _accept(self, input: Any, key: Key | None) -> Job:
        self._arriving = key  # the job can end before `accept_pulled` returns
        try:
            job = self.accept_pulled(input)
        finally:
            self._arriving = None
        if key is not None and job.outcome is None:
            self._keys[job] = key
        return job

    def _refuse(self, input: Any, error: BaseException) -> None:
        """Fail a job that has no key."""
        self.live += 1
        self.expect(self.refuse_pulled(input, error))
        if is_error(error, KeyboardInterrupt):
            self.parts.state.raise_later(error)

    def _give(self, input: Any, pickled: bytes | None) -> bool:
        """Deliver what was done before; return False if its value cannot be read, so that the job must run again."""
        try:
            value = unpickled(pickled, self.name)
        except ValueError:
            return False
        outcome: Succeeded[Any, Any] = Succeeded(input, value, 0, None, 0.0, 0.0)
        if self.in_order is None:
            self.ready.append(outcome)
            self._wake_reader()
        else:
            job = new_job(input, 0, self, self.context, 0.0)
            job.outcome, job.context = outcome, None
            self.expect(job)
        return True

    # -- The outcomes ------------------------------------------------------------------------------------------------

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Have a settled job recorded, and deliver its outcome after that; what was cancelled is delivered at once."""
        key = self._keys.pop(job, self._arriving)
        if key is None:
            self._deliver(job, outcome)
        elif isinstance(outcome, Cancelled):
            self._run.release(key)
            self._deliver(job, outcome)
        else:
            if not self._held:
                self._wake_reader()  # its wait began as one for a job, and is one for the journal from now on
            self._held.add(job)
            self._run.record(self._entry_of(key, outcome), partial(self._recorded, job, outcome))

    def _entry_of(self, key: Key, outcome: Succeeded[Any, Any] | Failed[Any]) -> Entry:
        # Texts and pickles are made here and not in the thread of the journal: that calls code of the user.
        if isinstance(outcome, Failed):
            return Entry(key, FailedJob.of(key, outcome, time.time()))  # noqa: TID251  # other processes read it
        if not self._keeps_values:
            return Entry(key)
        return Entry(key, None, pickled(outcome.value, self.name, self.parts.state.raise_later))

    def _recorded(self, job: Job, outcome: Outcome[Any, Any], error: JournalError | None) -> None:
        self._held.discard(job)
        if error is None:
            self._deliver(job, outcome)
        else:
            self._fail(job, outcome, error)
        if not self._held:
            self._wake_reader()  # the other way round
            self.parts.wakeups.notify()

    def _deliver(self, job: Job, outcome: Outcome[Any, Any]) -> None:
        if self._is_broken and self.raises:
            self.drop(job)  # or the reader would get that this job was cancelled, and not why
        else:
            super().deliver(job, outcome)
        if self.line.waiting:
            self.line.wake_next()  # one less is unrecorded
        self._leave_if_over()

    def _fail(self, job: Job, outcome: Outcome[Any, Any], error: JournalError) -> None:
        """End the stream, because an outcome could not be recorded: it is not delivered."""
        if isinstance(outcome, Succeeded):
            self._unrecorded.append(outcome.job)
        elif isinstance(outcome, Failed):
            self.parts.ledger.count_unread((outcome,))
        self._end = JournalError(str(error), tuple(self._unrecorded))
        self.drop(job)
        if not self._is_broken:
            self._is_broken = True
            self.end_intake()
            self.parts.cancellation.cancel_where(lambda job: job.sink is self, CancelReason.STREAM)
        self._leave_if_over()


class LimitedJournalChannel(JournalChannel, LimitedChannel[Any]):
    """The same, with limits. Jobs are counted once they are recorded; what was done before counts for nothing."""
