"""Notice that the server, or the network, has been out of order for too long."""

from __future__ import annotations

__all__ = ["Outage"]


class Outage:
    """The time since the server was last known to work.

    A server works if it accepts a mail or rejects it for its own sake. A server that only accepts connections does not.

    Args:
        patience: How many seconds an outage can take.
    """

    def __init__(self, patience: float) -> None:
        if not patience >= 0:
            raise ValueError(f"retry_for must be a number of seconds >= 0, got {patience}")
        self.patience = patience
        self._since: float | None = None

    def note(self, now: float) -> bool:
        """Note that an attempt to send, or to connect, failed. Return whether the outage takes too long."""
        if self._since is None:
            self._since = now
        return now - self._since > self.patience

    def end(self) -> None:
        """Note that the server works."""
        self._since = None
