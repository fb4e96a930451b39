"""2,000 prompts for an LLM API with limits of requests and of tokens per minute. The batch can be resumed.

    python -m examples.llm_batch                         15 seconds; at the speed of a real API, almost 5 minutes
    python -m examples.llm_batch --journal answers.db    press Ctrl+C and run it again: it continues
    python -m examples.llm_batch --share 1.3             a client that asks for more than it may: 429s

The API is a fake (llm_api.py) that also has overloads, slow responses and answers that are cut off. How the pool deals
with each of them is in `Batch.run` and `Batch.ask`.
"""

from __future__ import annotations

import sys

from examples.command_line import FAILED, INTERRUPTED, OK, Parser, finish_plain, positive, printable, starting, whole

with starting("llm_batch"):
    import argparse
    import asyncio
    from collections import Counter
    from collections.abc import Iterator, Sequence
    from dataclasses import dataclass
    from pathlib import Path
    from random import Random
    from typing import Any, NamedTuple

    import aiohttp

    from asyncpool import (
        Breaker,
        DeadLetters,
        DeadlineExceeded,
        Event,
        Journal,
        Outcome,
        Permanent,
        PoolClosed,
        PoolError,
        RateLimit,
        Retry,
        RetryAfter,
        Stream,
        Succeeded,
        TooManyFailures,
        WorkerPool,
        drain_on_signal,
    )
    from asyncpool.events import BreakerClosed, JobRetrying
    from asyncpool.progress import track
    from examples.llm_api import REQUESTS, TOKENS, LlmApi

__all__ = ["Batch", "Options", "Prompt", "main", "tokens_of"]

_EXPECTED_ANSWER = 40  # tokens


class Prompt(NamedTuple):
    """A job."""

    number: int
    text: str


def tokens_of(prompt: Prompt) -> int:
    """Estimate the tokens of a prompt and its answer: the weight of an attempt."""
    return len(prompt.text) // 6 + _EXPECTED_ANSWER


class TooManyRequests(Exception):
    """A 429: the limit of requests or of tokens is exceeded."""


class Overloaded(Exception):
    """A 529: the API has too much to do, whoever asks."""


class ServerError(Exception):
    """A 5xx other than 529."""


class BadAnswer(Exception):
    """An answer that is cut off."""


class Refused(Exception):
    """A 4xx other than 429: the prompt is the problem, so a retry would not help."""


_RETRIED = (Overloaded, ServerError, BadAnswer, aiohttp.ClientError, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    prompts: int = 2_000
    speed: float = 20.0
    share: float = 1.0
    workers: int = 60
    deadline: float | None = None
    max_tokens: int = 999_999_999
    journal: Path | None = None

    def jobs(self) -> Iterator[Prompt]:
        """Return the prompts, which are the same in each run. Every 500th is refused by the API."""
        random = Random(7)
        for number in range(1, self.prompts + 1):
            first = "forbidden" if number % 500 == 0 else f"Summary {number}:"
            yield Prompt(number, " ".join([first, *["words"] * random.randint(52, 132)]))


class Batch:
    """Asks all prompts of the options, and counts."""

    def __init__(self, options: Options, api: LlmApi | None = None) -> None:
        speed = options.speed
        self.options = options
        self.api = LlmApi(speed=speed) if api is None else api
        self.journal: Journal[Prompt] | None = None
        if options.journal is not None:
            self.journal = Journal(options.journal, key=lambda prompt: prompt.number, version="llm", values=True)
        self.answers: dict[int, str] = {}
        self.earlier = 0
        """The number of answers from the journal."""
        self.used = self.used_in_vain = self.unreported = 0
        """Tokens used, those of them in failed attempts, and attempts that did not report their usage."""
        self.retries: Counter[str] = Counter()
        self.letters: DeadLetters[Prompt] = DeadLetters()
        self.stopped = ""
        """Why the run ended early."""
        self.is_interrupted = False
        self.seconds = self.seconds_open = 0.0
        """The seconds of the run, and those of them in which the breaker was not closed."""
        # A burst makes up for late timers. It comes on top of the rate, so it is subtracted from that.
        share, minute = options.share, 60.0 / speed
        self.requests = RateLimit(REQUESTS * share - 5, per=minute, burst=5)
        self.tokens = RateLimit(TOKENS * share - 600, per=minute, burst=600, weight=tokens_of)
        self.pool = WorkerPool(
            self.ask,
            workers=options.workers,
            queue_size=options.workers,
            max_delayed=options.workers,  # Ctrl+C finishes these too
            limiter=[self.requests, self.tokens],
            timeout=6.0 / speed,
            # Attempts that fail before the breaker opens count, so there are more than these can be.
            retry=Retry(attempts=8, backoff=0.5 / speed, max_backoff=10.0 / speed, max_elapsed=600.0, on=_RETRIED),
            breaker=Breaker(on=Overloaded, window=10, pause=1.0 / speed, factor=1.5, max_pause=10.0 / speed),
            dead_letters=self.letters,
            observers=[self.observe],
            name="llm",
        )

    async def run(self) -> None:
        """Ask all prompts, or those that are left according to the journal."""
        options, loop = self.options, asyncio.get_running_loop()
        # The pool limits the connections and the times.
        connector, no_timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        async with self.api, aiohttp.ClientSession(connector=connector, timeout=no_timeout) as self.session, self.pool:
            began = loop.time()
            with drain_on_signal(self.pool, drain_timeout=30.0) as signals:
                try:
                    async with self.shown(self.outcomes()) as outcomes:
                        async for outcome in outcomes:
                            self.take(outcome)
                            if self.used >= options.max_tokens:
                                self.stopped = f"{self.used:,} tokens were used, of at most {options.max_tokens:,}"
                                break
                except (DeadlineExceeded, TooManyFailures) as error:
                    self.stopped = str(error)
                except PoolClosed:  # Ctrl+C
                    pass
                finally:
                    self.seconds = loop.time() - began
                    self.is_interrupted = signals.received > 0

    def outcomes(self) -> Stream[Outcome[Prompt, str]]:
        """Return the outcomes. With a journal, these have the answers of earlier runs."""
        jobs, deadline = self.options.jobs(), self.options.deadline
        most = max(10, self.options.prompts // 10)
        if self.journal is None:
            return self.pool.outcomes(jobs, max_failures=most, deadline=deadline)
        return self.journal.outcomes(self.pool, jobs, earlier=True, max_failures=most, deadline=deadline)

    def shown(self, outcomes: Stream[Outcome[Prompt, str]]) -> Stream[Outcome[Prompt, str]]:
        """Show the progress on standard error: a bar on a terminal, else lines."""
        try:
            return track(outcomes, total=self.options.prompts)
        except ModuleNotFoundError as error:
            print(f"No progress is shown: {error}", file=sys.stderr)
            return outcomes

    async def ask(self, prompt: Prompt) -> str:
        """Ask the API: the handler. Corrects what the limit of tokens was charged, whether the attempt fails or not."""
        estimate = tokens_of(prompt)
        used: int | None = None
        is_answered = False
        try:
            async with self.session.post(self.api.url, json={"prompt": prompt.text}) as response:
                reply = await response.json()
            used = sum(reply.get("usage", {}).values())
            answer = check(response, reply)
            is_answered = True
            return answer
        finally:
            if used is None:  # a timeout, for instance: the estimate remains charged
                self.unreported += 1
            else:
                self.tokens.charge(used - estimate)
                self.used += used
                self.used_in_vain += 0 if is_answered else used

    def observe(self, event: Event) -> None:
        """Count the retries by their cause, and the seconds of overloads."""
        if isinstance(event, BreakerClosed):
            self.seconds_open += event.seconds
        if isinstance(event, JobRetrying):
            error = event.error.__cause__ if isinstance(event.error, RetryAfter) else event.error
            self.retries[type(error).__name__] += 1

    def take(self, outcome: Outcome[Prompt, str]) -> None:
        """Keep an answer."""
        if isinstance(outcome, Succeeded):
            self.answers[outcome.job.number] = outcome.value
            self.earlier += not outcome.attempts

    # -- Output --

    def shares(self) -> tuple[float, float]:
        """Return the share of the limit of tokens that was used, in the whole run and while the breaker was closed."""
        most = TOKENS / self.api.window
        return self.api.tokens / (self.seconds * most), self.api.tokens / ((self.seconds - self.seconds_open) * most)

    def report(self) -> Iterator[str]:
        """Return the lines of the report."""
        options, api, stats = self.options, self.api, self.pool.stats
        real = self.seconds * options.speed
        yield f"{len(self.answers):,} of {options.prompts:,} prompts answered in {self.seconds:.1f} s"
        if self.earlier:
            yield f"  {self.earlier:,} of them in an earlier run, according to {options.journal}"
        rejected = api.rejected
        yield f"requests: {api.allowed:,} allowed, {rejected[429]:,} rejected with 429, {rejected[529]:,} with 529"
        overall, closed = self.shares()
        yield (
            f"tokens: {self.used:,} used, {overall:.1%} of the limit: {closed:.1%} while the breaker was closed, "
            f"{api.peak / TOKENS:.1%} in the busiest minute"
        )
        yield f"  {self.used_in_vain:,} of them in failed attempts; {self.unreported:,} attempts did not report theirs"
        causes = ", ".join(f"{count:,} {cause}" for cause, count in self.retries.most_common())
        yield f"retries: {stats.retries:,}{f' ({causes})' if causes else ''}"
        yield f"overloads: the breaker was open for {self.seconds_open:.1f} s"
        kinds = Counter(letter.error_type.rpartition(".")[2] for letter in self.letters)
        causes = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        yield f"dead letters: {len(self.letters):,}{f' ({causes})' if causes else ''}"
        yield f"At the speed of a real API: {real / 60:.1f} minutes"

    def sum_up(self) -> int:
        """Print the report, and return the exit status."""
        for line in self.report() if self.seconds else ():
            print(line)
        if self.is_interrupted:
            hint = "" if self.options.journal is None else "; run the same command again to continue"
            done = f"{len(self.answers):,} of {self.options.prompts:,} prompts were answered"
            print(f"Interrupted: {done}{hint}.", file=sys.stderr)
            return INTERRUPTED
        if self.stopped:
            print(f"llm_batch: error: {printable(self.stopped)}", file=sys.stderr)
            return FAILED
        return OK


def check(response: aiohttp.ClientResponse, reply: Any) -> str:
    """Return the answer in a reply, or raise what the pool should do."""
    error, status = reply.get("error"), response.status
    if status == 429:  # all requests must wait, so the whole pool does
        raise RetryAfter.from_header(response.headers.get("Retry-After"), pause=True) from TooManyRequests(error)
    if status == 529:
        raise Overloaded(error)
    if status >= 500:
        raise ServerError(error)
    if status >= 400:
        raise Permanent from Refused(error)
    text = str(reply["text"])
    if not text.endswith("."):
        raise BadAnswer(text)
    return text


# -- The command --


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    batch = Batch(_parse(arguments))
    status = OK

    def run() -> None:
        nonlocal status
        try:
            asyncio.run(batch.run())
            status = batch.sum_up()
        except PoolError as error:  # the journal cannot be used
            print(f"llm_batch: error: {printable(str(error))}", file=sys.stderr)
            status = FAILED

    return finish_plain("llm_batch", run) or status


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="llm_batch",
        usage="python -m examples.llm_batch [options]",
        description="Ask a fake LLM API many prompts, as fast as its limits allow.",
        epilog="Ctrl+C finishes accepted prompts, a second one cancels them. With --journal, the next run continues.",
    )
    default, add = Options(), parser.add_argument
    add("--prompts", type=whole(1, 1_000_000), metavar="N", help=f"number of prompts ({default.prompts})")
    add("--speed", type=positive(1_000), metavar="N", help=f"how many times faster than real time ({default.speed:g})")
    add("--share", type=_share, metavar="N", help=f"share of the API's limits to use ({default.share:g})")
    add("--workers", type=whole(1, 1_000), metavar="N", help=f"number of workers ({default.workers})")
    add("--deadline", type=positive(86_400), metavar="S", help="stop after this many seconds")
    add("--max-tokens", type=whole(1, 999_999_999), metavar="N", help="stop after this many tokens")
    add("--journal", type=Path, metavar="FILE", help="record answers in this file, and continue from it")
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    return Options(**vars(parser.parse_args(arguments)))


def _share(text: str) -> float:
    """Read a share that leaves a rate: the bursts are subtracted."""
    try:
        share = positive(10)(text)
    except argparse.ArgumentTypeError:
        share = 0.0
    if share <= 0.05:
        raise argparse.ArgumentTypeError(f"must be a number > 0.05 and <= 10, got {text!r:.40}")
    return share


if __name__ == "__main__":
    with starting("llm_batch"):
        sys.exit(main())
