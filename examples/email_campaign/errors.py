"""The reasons for which a campaign stops. The errors of a single mail are in `mailer.py`."""

from __future__ import annotations

__all__ = ["CampaignError", "DatabaseError", "JournalError", "RefusalError", "RelayError"]


class CampaignError(Exception):
    """The campaign cannot start or continue. The message can be shown to users."""


class DatabaseError(CampaignError):
    """The database cannot be opened or read, or another campaign is using it."""


class JournalError(CampaignError):
    """Deliveries can no longer be recorded."""


class RelayError(CampaignError):
    """The SMTP server cannot be reached, or rejects all mails of this sender."""


class RefusalError(RelayError):
    """The SMTP server refuses one mail after the other with the same reply."""
