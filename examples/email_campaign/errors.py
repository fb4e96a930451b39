"""Why a campaign cannot go on, in sentences. What goes wrong with a single mail is in `mailer.py`."""

from __future__ import annotations

__all__ = ["CampaignError", "DatabaseError", "JournalError", "RelayError"]


class CampaignError(Exception):
    """The campaign cannot start, or cannot go on; the text says why, in a sentence."""


class DatabaseError(CampaignError):
    """The database cannot be opened, read, or used by this campaign now."""


class JournalError(CampaignError):
    """What was sent can no longer be written down."""


class RelayError(CampaignError):
    """The SMTP server cannot be reached, or will have none of our mails."""
