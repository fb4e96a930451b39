"""Check e-mail addresses before they get into a header or an SMTP command."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parseaddr

from email_validator import EmailNotValidError, validate_email

__all__ = ["InvalidAddress", "Mailbox", "check_address", "read_mailbox"]


class InvalidAddress(ValueError):
    """The text is not one address that every mail server can take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """An address and the name that mail programs show for it."""

    name: str
    address: str


def check_address(text: str) -> str:
    """Return an address in ASCII: an international domain in its `xn--` form. DNS is not asked.

    A line break would start another header, and a comma a second recipient, so each address must be exactly one.

    Raises:
        InvalidAddress: The text is not an address, or one that only servers with SMTPUTF8 can take.
    """
    try:
        found = validate_email(text, check_deliverability=False, allow_smtputf8=False)
    except EmailNotValidError as error:
        raise InvalidAddress(f"{text!r} is not a valid address: {error}") from error
    assert found.ascii_email is not None  # because of allow_smtputf8=False
    return found.ascii_email


def read_mailbox(text: str) -> Mailbox:
    """Parse `news@example.com` or `Example News <news@example.com>`.

    Raises:
        InvalidAddress: The text has neither form.
    """
    name, address = parseaddr(text)
    if not address or not text.isprintable():
        raise InvalidAddress(f"must be ADDRESS or NAME <ADDRESS>, got {text!r}")
    return Mailbox(name=name, address=check_address(address))
