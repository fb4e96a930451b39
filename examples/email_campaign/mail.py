"""What a mail looks like: its headers, and the text of a template."""

from __future__ import annotations

from dataclasses import dataclass
from email.charset import QP, Charset
from email.header import Header
from email.message import Message
from email.policy import compat32
from email.utils import formataddr, formatdate
from string import Template as Text
from urllib.parse import quote

from examples.email_campaign.addresses import Mailbox, check_address
from examples.email_campaign.users import User

__all__ = ["TEXT", "Mail", "MailTemplate"]

TEXT = """\
Hello $name,

We have not seen you for a while, and we miss you.

Your friends at Example
"""

_PLACEHOLDERS = ("name", "email", "id", "unsubscribe")
_SCHEMES = ("https:", "mailto:")
_MAX_URL = 900  # a line of a mail has at most 998 characters, and a URL cannot be folded
_MAX_ENCODED_LINE = 76  # of encoded words (RFC 2047)
_MAX_PLAIN = 60  # longer names are encoded, because the encoding can be folded

_CHARSET = Charset("utf-8")
_CHARSET.body_encoding = QP
# The newer policies have two faults: they write a long URL as encoded words, which no mail program can follow, and
# encoded words that are longer than the 75 characters of RFC 2047. They also take five times as long. Nothing is folded
# again that `_encoded` has folded.
_POLICY = compat32.clone(linesep="\r\n", max_line_length=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail, as it is transmitted."""

    sender: str
    recipient: str
    content: bytes


class MailTemplate:
    """Makes the mails of a campaign.

    Args:
        sender: The sender.
        subject: The subject, in one line.
        text: The text. `$name`, `$email`, `$id` and `$unsubscribe` are replaced; `$$` is a dollar sign.
        unsubscribe: A URL that starts with `https:` or `mailto:`, for the header List-Unsubscribe. The same
            placeholders are replaced, except its own. None: no such header.

    Raises:
        ValueError: The subject has a line break, a placeholder does not exist, or the URL is not valid.
    """

    def __init__(self, *, sender: Mailbox, subject: str, text: str = TEXT, unsubscribe: str | None = None) -> None:
        if not subject.isprintable():
            raise ValueError(f"the subject must be one line of printable characters, got {subject!r}")
        self.sender = sender
        self._subject = _text("Subject", subject)
        self._from = _mailbox("From", sender)
        self._text = _checked(text, _PLACEHOLDERS)
        if unsubscribe is None and "unsubscribe" in self._text.get_identifiers():
            raise ValueError("the text has $unsubscribe, but there is no URL to unsubscribe")
        self._unsubscribe = None if unsubscribe is None else _checked(_checked_url(unsubscribe), _PLACEHOLDERS[:-1])

    def mail(self, user: User, id: str) -> Mail:
        """Return the mail to a user.

        Args:
            user: The recipient.
            id: The Message-ID, with its angle brackets.

        Raises:
            InvalidAddress: The address of the user is not valid.
        """
        # Collapse white space: a line break in a name would start another header.
        to = Mailbox(name=" ".join(user.name.split()), address=check_address(user.email))
        fields = {"name": to.name, "email": to.address, "id": str(user.id)}
        message = Message(policy=_POLICY)
        if self._unsubscribe is not None:
            url = self._unsubscribe.substitute({key: quote(value, safe="") for key, value in fields.items()})
            fields["unsubscribe"] = url
            message["List-Unsubscribe"] = f"<{url}>"
            if url.startswith("https:"):  # RFC 8058: mail programs unsubscribe by a POST to it
                message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        text = self._text.substitute(fields).rstrip("\n")
        message.set_payload(f"{text}\n", _CHARSET)
        message["From"] = self._from
        message["To"] = _mailbox("To", to)
        message["Subject"] = self._subject
        message["Date"] = formatdate()
        message["Message-ID"] = id
        return Mail(sender=self.sender.address, recipient=to.address, content=message.as_bytes())


def _mailbox(header: str, mailbox: Mailbox) -> str:
    if _is_plain(mailbox.name):
        return formataddr((mailbox.name, mailbox.address))
    return f"{_encoded(header, mailbox.name)}\n <{mailbox.address}>"


def _text(header: str, text: str) -> str:
    return text if _is_plain(text) else _encoded(header, text)


def _encoded(header: str, text: str) -> str:
    return Header(text, "utf-8", header_name=header, maxlinelen=_MAX_ENCODED_LINE).encode()


def _is_plain(text: str) -> bool:
    """Return whether a header can have the text as it is: short, and nothing that looks like an encoded word."""
    return len(text) <= _MAX_PLAIN and text.isascii() and text.isprintable() and "=?" not in text


def _checked(text: str, placeholders: tuple[str, ...]) -> Text:
    template = Text(text)
    if not template.is_valid():
        raise ValueError("a dollar sign must be followed by the name of a placeholder; write $$ for the sign itself")
    if unknown := set(template.get_identifiers()) - set(placeholders):
        raise ValueError(f"there is no placeholder ${min(unknown)}: use ${', $'.join(placeholders)}")
    return template


def _checked_url(url: str) -> str:
    is_plain = url.isascii() and url.isprintable() and not any(character in url for character in ' <>"')
    if not is_plain or not url.startswith(_SCHEMES) or len(url) > _MAX_URL:
        raise ValueError(
            f"the URL to unsubscribe must start with https: or mailto:, and have at most {_MAX_URL} ASCII characters "
            f"without spaces, got {url!r:.100}"
        )
    return url
