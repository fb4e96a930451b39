"""The dead letters of a campaign: the mails that failed permanently, in a file and in the journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpool
from examples.email_campaign.journal import Journal, Mark
from examples.email_campaign.replies import Ambiguous, Deferred, Refused
from examples.email_campaign.users import User

__all__ = ["CampaignLetters", "letters_in"]


def letters_in(path: Path) -> asyncpool.DeadLetterFile[User]:
    """Open a file of dead letters, to read or to replay them."""
    return asyncpool.DeadLetterFile(path, encode=asdict, decode=_user)


class CampaignLetters(asyncpool.DeadLetterFile[User]):
    """A file of dead letters. Each is also marked in the journal, so that the next run does not send it again.

    Refusals are held back until `release`. If the server turns out to refuse everybody, `drop` forgets them, and their
    users are still to be sent. If the process is killed meanwhile, the next run sends these mails, which were refused.

    Args:
        path: The file.
        holds: Returns whether refusals are held back.
    """

    def __init__(self, path: Path, *, holds: Callable[[], bool]) -> None:
        super().__init__(path, encode=asdict, decode=_user)
        self.journal: Journal | None = None
        """The journal of the campaign; it must be set before the first letter."""
        self.reasons: Counter[str] = Counter()
        """The number of letters by reason: the code of the reply, or the type of the error."""
        self.deferred = 0
        """The number of mails that are left to the next run. They do not become letters."""
        self._holds = holds
        self._held: list[asyncpool.DeadLetter[User]] = []

    def record(self, letter: asyncpool.DeadLetter[User]) -> None:
        match _kind(letter):
            case Deferred.__name__:
                self.deferred += 1
            case Refused.__name__ if self._holds():
                self._held.append(letter)
            case _:
                self._write(letter)

    def release(self) -> None:
        """Record the refusals that were held back."""
        held, self._held = self._held, []
        for letter in held:
            self._write(letter)

    def drop(self) -> None:
        """Forget the refusals that were held back."""
        self._held.clear()

    def _write(self, letter: asyncpool.DeadLetter[User]) -> None:
        kind = _kind(letter)
        # Write the letter first: if the process is killed in between, the mail is sent again, not forgotten.
        super().record(letter)
        assert self.journal is not None
        self.journal.write(letter.job, Mark.AMBIGUOUS if kind == Ambiguous.__name__ else Mark.FAILED)
        self.reasons[letter.error.partition(" ")[0] if kind == Refused.__name__ else kind] += 1


def _kind(letter: asyncpool.DeadLetter[User]) -> str:
    return letter.error_type.rpartition(".")[2]


def _user(fields: dict[str, Any]) -> User:
    return User(**fields)
