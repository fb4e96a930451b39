"""What is kept of a job that failed for good, a letter, and the contract with whoever keeps letters.

The stores are `memory.py` and `file.py`. When a letter is written is `_core/dead_letter_writer.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from asyncpool.outcomes import Failed

__all__ = ["DeadLetter", "DeadLetterSink", "PoolAwareSink", "safe_text"]

JobT = TypeVar("JobT")
JobT_co = TypeVar("JobT_co", covariant=True)
JobT_contra = TypeVar("JobT_contra", contravariant=True)

_MOST_TEXT = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter(Generic[JobT_co]):
    """What is kept of a job that failed for good. Of its error only text, so no frames and nothing that they hold."""

    job: JobT_co
    """The input, as it was submitted."""
    error_type: str
    """The name of the error's type: `ValueError`, `smtplib.SMTPServerDisconnected`."""
    error: str
    """`str(error)`, of which at most 4,000 characters are kept; the last is then an ellipsis."""
    attempts: int
    """How many attempts there were."""
    first_at: float
    """When the pool accepted the job, in seconds since the epoch."""
    last_at: float
    """When its last attempt failed, in seconds since the epoch."""
    pool: str = ""
    """The name of the pool."""

    @staticmethod
    def of(failed: Failed[JobT], *, pool: str = "", first_at: float, last_at: float) -> DeadLetter[JobT]:
        """Return the letter of a job that failed. An error whose `__str__` raises has a text that says so."""
        return DeadLetter(
            job=failed.job,
            error_type=_name(type(failed.error)),
            error=safe_text(str, failed.error),
            attempts=failed.attempts,
            first_at=first_at,
            last_at=last_at,
            pool=pool,
        )


def safe_text(text_of: Callable[[object], str], value: object) -> str:
    """Return the `str` or `repr` of anything: never more than 4,000 characters, and a remark if it cannot be had."""
    try:
        text = text_of(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"<{text_of.__name__}() of this {_name(type(value))} raised {_name(type(error))}>"
    # A slice is a plain str: what `__str__` returns may be of a subclass, which could hold anything.
    return text[:_MOST_TEXT] if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


@runtime_checkable
class DeadLetterSink(Protocol[JobT_contra]):
    """Whoever takes letters: `DeadLetters`, `DeadLetterFile`, or a few lines of yours around a table or a queue."""

    def record(self, letter: DeadLetter[JobT_contra], /) -> None:
        """Take a letter in.

        Called on the loop, before the job's outcome is delivered, so it must not block. What it raises is logged by
        the pool and changes nothing else.
        """
        ...


@runtime_checkable
class PoolAwareSink(DeadLetterSink[JobT_contra], Protocol[JobT_contra]):
    """A sink that is told which pools write to it. A pool calls these two if its sink has them both."""

    def pool_opened(self, name: str, /) -> None:
        """Note that a pool has started. Names need not be unique."""
        ...

    def pool_closed(self, name: str, /) -> None:
        """Note that a pool has closed: it records no more letters."""
        ...
