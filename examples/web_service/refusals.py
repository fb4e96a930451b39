"""Why a request gets no thumbnail: a status and a sentence, which the client gets as they are."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """Raised by whatever finds the reason, answered by the application. `retry_after` is in seconds."""

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(status, sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
