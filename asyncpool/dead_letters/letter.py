"""`DeadLetter`, the record of a job that failed permanently, and the protocol of the sinks that take such records.

The stores are `memory.py` and `file.py`. `writer.py` writes the letters of a pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from asyncpool._guard import fields_text, name_of, safe_text
from asyncpool.outcomes import Failed

__all__ = ["DeadLetter", "DeadLetterSink", "PoolAwareSink"]

JobT = TypeVar("JobT")
JobT_co = TypeVar("JobT_co", covariant=True)
JobT_contra = TypeVar("JobT_contra", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeadLetter(Generic[JobT_co]):
    """The record of a job that failed permanently. It has the error only as text, so it keeps no frames alive."""

    job: JobT_co
    """The input, as it was submitted."""
    error_type: str
    """The name of the error's type: `ValueError`, `smtplib.SMTPServerDisconnected`."""
    error: str
    """`str(error)`. A text of more than 4,000 characters is cut to 4,000, the last of which is an ellipsis."""
    attempts: int
    """How many attempts were made."""
    first_at: float
    """When the pool accepted the job, in seconds since the epoch."""
    last_at: float
    """When its last attempt failed, in seconds since the epoch."""
    pool: str = ""
    """The name of the pool."""

    def __repr__(self) -> str:
        return fields_text(self)

    @staticmethod
    def of(failed: Failed[JobT], *, pool: str = "", first_at: float, last_at: float) -> DeadLetter[JobT]:
        """Return the letter of a failed job.

        Args:
            failed: The outcome of the job. If the `__str__` of its error raises, the letter has a text that states it.
            pool: The name of the pool.
            first_at: When the pool accepted the job, in seconds since the epoch.
            last_at: When its last attempt failed, in seconds since the epoch.
        """
        return DeadLetter(
            job=failed.job,
            error_type=name_of(type(failed.error)),
            error=safe_text(str, failed.error),
            attempts=failed.attempts,
            first_at=first_at,
            last_at=last_at,
            pool=pool,
        )


@runtime_checkable
class DeadLetterSink(Protocol[JobT_contra]):
    """Takes letters: `DeadLetters`, `DeadLetterFile`, or a class of yours that writes them to a table or a queue."""

    def record(self, letter: DeadLetter[JobT_contra], /) -> None:
        """Record a letter.

        The pool calls this on its loop, before the job's outcome is delivered, so it must not block. If it raises, the
        pool logs the exception and the error of the job, and delivers the outcome as usual.
        """
        ...


@runtime_checkable
class PoolAwareSink(DeadLetterSink[JobT_contra], Protocol[JobT_contra]):
    """A sink that is notified when pools start and close. A pool calls these methods if its sink has both of them."""

    def pool_opened(self, name: str, /) -> None:
        """Register a pool that has started. Names need not be unique."""
        ...

    def pool_closed(self, name: str, /) -> None:
        """Remove a pool that has closed: it records no more letters."""
        ...
