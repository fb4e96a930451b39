"""The exception for a rejected request: a status and a message, which are sent to the client as they are."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """Raised where a request is rejected; the application turns it into a response. `retry_after` is in seconds."""

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(status, sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
