"""What the replies of a mail server mean, for the mail, for its connection and for the campaign."""

from __future__ import annotations

import re
from enum import Enum

__all__ = [
    "Ambiguous",
    "Deferred",
    "Disconnected",
    "Phase",
    "Refused",
    "is_outage",
    "is_transient",
    "spoils_connection",
]


class Phase(Enum):
    """The steps of sending a mail. The value is how messages call it."""

    SENDER = "MAIL FROM"
    RECIPIENT = "RCPT TO"
    DATA = "DATA"
    TEXT = "the text"
    END = "the end of the text"


class Refused(Exception):
    """The server rejected a mail: with 4xx temporarily, with 5xx permanently."""

    def __init__(self, code: int, text: str, phase: Phase, *, spoils: bool = False) -> None:
        super().__init__(code, text, phase)
        self.code = code
        self.text = text
        self.phase = phase
        self.spoils = spoils
        """Whether the connection cannot be used for the next mail."""

    @property
    def is_temporary(self) -> bool:
        """Whether the server asks to try again later."""
        return self.code < 500

    @property
    def is_about_sender(self) -> bool:
        """Whether the server would reject each mail of this sender.

        At MAIL FROM, a server knows only the sender, the client and the size of the mail.
        """
        return not self.is_temporary and self.phase is Phase.SENDER and not self._is_about_size

    @property
    def is_about_server(self) -> bool:
        """Whether the server would currently reject each mail: it is closing, overloaded, or out of storage.

        Otherwise a temporary rejection is about this mail: its mailbox is full, or greylisting delays it.
        """
        if not self.is_temporary:
            return False
        if self.code == 421 or self.phase is Phase.SENDER:
            return True
        if self._subject:
            return self._subject == "3"
        return self.code == 452 or self.phase is not Phase.RECIPIENT

    @property
    def _is_about_size(self) -> bool:
        return self.code == 552 or re.match(r"5\.(2\.3|3\.4)\b", self.text) is not None

    @property
    def _subject(self) -> str:
        """The second number of an enhanced status code (RFC 3463), such as 3 (mail system) of 4.3.1; "" without one."""
        found = re.match(r"[45]\.([0-9])\.[0-9]", self.text)
        return "" if found is None else found[1]

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Disconnected(ConnectionError):
    """The connection was lost, or the server stopped responding, before the server had the whole mail."""


class Ambiguous(ConnectionError):
    """The connection was lost, or the server stopped responding, after it had the whole mail, which may be accepted."""


class Deferred(Exception):
    """The mail was rejected temporarily for so long that it is left to the next run."""


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt at the mail makes sense."""
    if isinstance(error, Refused):
        return error.is_temporary
    return isinstance(error, (Disconnected, Ambiguous))


def is_outage(error: BaseException) -> bool:
    """Return whether the next mail would probably fail in the same way, because the server is down or overloaded."""
    if isinstance(error, Refused):
        return error.is_about_server
    return isinstance(error, (Disconnected, Ambiguous))


def spoils_connection(error: BaseException) -> bool:
    """Return whether the next attempt needs a new connection. A reply about one mail leaves it usable."""
    if isinstance(error, Refused):
        return error.spoils or error.is_about_server
    return isinstance(error, (Disconnected, Ambiguous))
