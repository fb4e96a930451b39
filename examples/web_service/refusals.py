"""The exception for a rejected request: a status and a message, which are sent to the client, and a reason to count."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = ["REASONS", "Reason", "Refusal"]

Reason: TypeAlias = Literal[
    "queue",  # the pool is full
    "uploads",  # too many uploads are in progress
    "upload_bytes",  # the uploads in progress are too large together
    "upload_timeout",  # the upload took too long
    "timeout",  # the thumbnail took too long
    "stopping",
    "photo",  # it is not a photo, damaged or too large
    "request",  # it makes no sense
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class Refusal(Exception):
    """Raised where a request is rejected; the application turns it into a response. `retry_after` is in seconds."""

    def __init__(self, status: int, reason: Reason, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(status, reason, sentence)
        self.status = status
        self.reason: Reason = reason
        self.sentence = sentence
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
