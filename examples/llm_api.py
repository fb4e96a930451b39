"""A fake of an LLM completion API, on loopback: limits of requests and tokens per window, overloads, slow responses."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from email.utils import formatdate
from random import Random
from types import TracebackType
from typing import Self

from aiohttp import web

__all__ = ["REQUESTS", "TOKENS", "LlmApi"]

REQUESTS, TOKENS = 500, 60_000
"""The limits of the API, per minute."""

_MAX_SLOW = 60.0


class LlmApi:
    """Completes prompts at `POST /complete`, within its limits. Use it as an async context manager.

    All times are divided by `speed`, so a minute of the API is `60 / speed` seconds. The header `Retry-After` is the
    exception, because it has whole seconds.

    * A request that exceeds a limit in the sliding window of the last minute gets a 429. `Retry-After` has seconds and
      an HTTP date, in turns. Prompt tokens count when a request is allowed, completion tokens when it is answered.
    * During an overload, which lasts a moment, all requests get a 529. `overloads` is their mean distance in seconds.
    * Some responses take a minute, have status 500, or an answer that is cut off. The last two report their usage.
    * A prompt that contains the word "forbidden" gets a 400.

    Args:
        speed: By how much the API is faster than a real one.
        overloads: Mean seconds between two overloads, in the time of the API; 0 for none.
        faults: The share of responses that are slow, of those that fail, and of those that are cut off.
        seed: Of its random numbers.
    """

    def __init__(self, *, speed: float, overloads: float = 120.0, faults: float = 0.002, seed: int = 1) -> None:
        self.window = 60.0 / speed
        self.allowed = 0
        """The number of requests that were allowed."""
        self.tokens = 0
        """The number of tokens that were counted."""
        self.peak = 0
        """The most tokens that were counted in any window."""
        self.rejected: Counter[int] = Counter()
        """The number of rejected requests, by status."""
        self._speed = speed
        self._overloads = overloads
        self._faults = faults
        self._random = Random(seed)
        self._requests: deque[float] = deque()  # the time of each allowed request of the window
        self._usage: deque[tuple[float, int]] = deque()  # when tokens were counted, and how many
        self._in_window = 0  # the sum of these tokens
        self._down = (math.inf, math.inf)  # the current or next overload

    async def __aenter__(self) -> Self:
        self._plan_overload(asyncio.get_running_loop().time())
        app = web.Application()
        app.router.add_post("/complete", self._complete)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        except BaseException:  # for example a Ctrl+C
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The address to post prompts to."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/complete"

    async def _complete(self, request: web.Request) -> web.Response:
        prompt = str((await request.json())["prompt"])
        loop, tokens = asyncio.get_running_loop(), count_tokens(prompt)
        if self._is_down(loop.time()):
            return self._reject(529, "overloaded")
        wait = self._wait(loop.time(), tokens)
        if wait > 0.0:
            return self._reject(429, "too many requests", {"Retry-After": self._retry_after(wait)})
        if "forbidden" in prompt:
            return self._reject(400, "the prompt is against the rules")
        self.allowed += 1
        self._requests.append(loop.time())
        self._count(loop.time(), tokens)
        draw, size, slow = self._random.random(), self._random.randint(10, 70), self._random.uniform(1.0, 3.0)
        await asyncio.sleep((_MAX_SLOW if draw < self._faults else slow) / self._speed)
        self._count(loop.time(), size)
        body = {"usage": {"prompt_tokens": tokens, "completion_tokens": size}, "text": " ".join(["word"] * size) + "."}
        if draw < 2 * self._faults:
            return web.json_response({"usage": body["usage"], "error": "internal error"}, status=500)
        if draw < 3 * self._faults:
            body["text"] = "word word"
        return web.json_response(body)

    def _reject(self, status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
        self.rejected[status] += 1
        return web.json_response({"error": text}, status=status, headers=headers)

    def _retry_after(self, wait: float) -> str:
        """Return the header, as seconds or as a date. Both have whole seconds, so they are rounded up."""
        if self.rejected[429] % 2:
            return formatdate(math.ceil(time.time() + wait), usegmt=True)
        return str(math.ceil(wait))

    # -- Limits --

    def _count(self, now: float, tokens: int) -> None:
        self._forget(now - self.window)
        self.tokens += tokens
        self._usage.append((now, tokens))
        self._in_window += tokens
        self.peak = max(self.peak, self._in_window)

    def _forget(self, begin: float) -> None:
        """Forget what was before the window."""
        while self._requests and self._requests[0] <= begin:
            self._requests.popleft()
        while self._usage and self._usage[0][0] <= begin:
            self._in_window -= self._usage.popleft()[1]

    def _wait(self, now: float, tokens: int) -> float:
        """Return the seconds until a request with this number of prompt tokens is allowed; 0 if it is allowed now."""
        begin = now - self.window
        self._forget(begin)
        wait = self._requests[0] - begin if len(self._requests) >= REQUESTS else 0.0
        excess = self._in_window + tokens - TOKENS
        for at, used in self._usage:
            if excess <= 0:
                break
            excess -= used
            wait = max(wait, at - begin)
        return wait

    # -- Overloads --

    def _is_down(self, now: float) -> bool:
        begin, end = self._down
        if now >= end:
            self._plan_overload(now)
            return False
        return now >= begin

    def _plan_overload(self, now: float) -> None:
        if self._overloads:
            begin = now + self._random.uniform(0.5, 1.5) * self._overloads / self._speed
            self._down = (begin, begin + self._random.uniform(0.5, 2.0) / self._speed)


def count_tokens(text: str) -> int:
    """Return the number of tokens, as this API counts them: a word is one, and so is the end."""
    return len(text.split()) + 1
