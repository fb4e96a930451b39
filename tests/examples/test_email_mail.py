"""The mails of the campaign, as the parser of the standard library reads them."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from examples.email_campaign.addresses import InvalidAddress, check_address, read_mailbox
from examples.email_campaign.mail import TEXT, MailTemplate
from examples.email_campaign.users import User

# No white space that `str.split` would change, and nothing that cannot be encoded.
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=300).map(lambda name: " ".join(name.split()))


def make(
    name: str = "User 1",
    email: str = "user.1@example.org",
    sender: str = "news@example.com",
    subject: str = "We miss you",
    text: str = TEXT,
    unsubscribe: str | None = None,
) -> bytes:
    template = MailTemplate(sender=read_mailbox(sender), subject=subject, text=text, unsubscribe=unsubscribe)
    return template.mail(User(id=1, name=name, email=email), "<we-miss-you.1@example.com>").content


def parse(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def decoded(content: bytes, name: str) -> str:
    """The text of a header. Some releases of the modern parser put spaces between encoded words."""
    raw = message_from_bytes(content, policy=policy.compat32)[name]
    return str(make_header(decode_header(raw)))


def check_lines(content: bytes) -> None:
    """The limits of RFC 5322, 2.1.1, and of RFC 2047, 2."""
    assert content.endswith(b"\r\n")
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert b"\r" not in content.replace(b"\r\n", b"")
    for line in content.split(b"\r\n"):
        assert len(line) <= 998
        content.isascii()
    headers, _, _ = content.partition(b"\r\n\r\n")
    for word in re.findall(rb"=\?[^?\s]*\?[bqBQ]\?[^?\s]*\?=", headers):
        assert len(word) <= 75


@given(names)
@example("Zoë")
@example("漢字仮名" * 100)
@example("x" * 1200)
@example("Ann, Bob <c@d.org>; " * 40)
@example('"\\' * 80)
@example("Zoë\x00\x1b[31m")
@example("=?utf-8?q?=0ABcc=3A_x=40y=2Eorg?=")
def test_a_name_may_be_anything(name: str) -> None:
    content = make(name)

    check_lines(content)
    message = parse(content)
    assert [address.addr_spec for address in message["To"].addresses] == ["user.1@example.org"]
    assert message.keys() == [
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
    ]


@pytest.mark.parametrize(
    "name", ["Zoë", "漢字仮名" * 100, "Zoë, " * 50, "x " * 200, "Łukasz Żółć", "Ann (Zoë) <x@y.org>"]
)
def test_a_name_is_read_as_it_was_written(name: str) -> None:
    name = " ".join(name.split())
    content = make(name)

    text, _, address = decoded(content, "To").rpartition(" ")
    assert text == name
    assert address == "<user.1@example.org>"
    assert " ".join(parse(content).get_content().split()).startswith(f"Hello {name}, We have not")


@pytest.mark.parametrize("subject", ["Grüße", "漢字" * 200, "long " * 100 + "end", "=?utf-8?q?x?="])
def test_a_subject_is_read_as_it_was_written(subject: str) -> None:
    content = make(subject=subject)

    check_lines(content)
    assert decoded(content, "Subject") == subject
    assert make(subject="We miss you").count(b"Subject: We miss you\r\n") == 1


@pytest.mark.parametrize("text", ["a\n.\n..b\n", "no line break", "x" * 5000, "Grüße, $name\n", "From me\n", "\n\n"])
def test_a_text_is_read_as_it_was_written(text: str) -> None:
    content = make(text=text, name="Zoë")

    check_lines(content)
    read = parse(content).get_content().replace("\r\n", "\n")
    assert read == text.replace("$name", "Zoë").rstrip("\n") + "\n"


def test_the_sender_may_have_a_name() -> None:
    content = make(sender="Grüße von Zoë <news@exämple.org>")

    check_lines(content)
    assert decoded(content, "From") == "Grüße von Zoë <news@xn--exmple-cua.org>"


@pytest.mark.parametrize("length", [10, 800])
def test_a_url_to_unsubscribe_is_not_broken(length: int) -> None:
    url = f"https://example.com/u/$id?to=$email&x={'a' * length}"
    content = make(email="a+b@example.org", unsubscribe=url, text="Bye: $unsubscribe\n")

    check_lines(content)
    expected = url.replace("$id", "1").replace("$email", "a%2Bb%40example.org")
    raw = message_from_bytes(content, policy=policy.compat32)
    assert raw["List-Unsubscribe"].strip() == f"<{expected}>"
    assert raw["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert parse(content).get_content().strip() == f"Bye: {expected}"


def test_a_mail_to_unsubscribe_needs_no_post() -> None:
    raw = message_from_bytes(make(unsubscribe="mailto:leave@example.com?subject=$id"), policy=policy.compat32)
    assert raw["List-Unsubscribe"] == "<mailto:leave@example.com?subject=1>"
    assert raw["List-Unsubscribe-Post"] is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"subject": "a\r\nBcc: x@y.org"}, "the subject must be one line"),
        ({"text": "costs $5"}, "write \\$\\$ for the sign itself"),
        ({"text": "Hello $nome"}, "there is no placeholder \\$nome: use \\$name, "),
        ({"text": "$unsubscribe"}, "there is no URL to unsubscribe"),
        ({"unsubscribe": "http://example.com/"}, "must start with https: or mailto:"),
        ({"unsubscribe": "https://example.com/>,<x"}, "ASCII characters without spaces"),
        ({"unsubscribe": "https://example.com/ü"}, "ASCII characters without spaces"),
        ({"unsubscribe": f"https://example.com/{'a' * 900}"}, "at most 900"),
        ({"unsubscribe": "https://example.com/$unsubscribe"}, "there is no placeholder \\$unsubscribe"),
        ({"sender": "no address"}, "must be ADDRESS or NAME <ADDRESS>|is not a valid address"),
        ({"sender": "a@b.org\r\nBcc: c@d.org"}, "must be ADDRESS or NAME <ADDRESS>"),
        ({"email": "a@b.org,c@d.org"}, "is not a valid address"),
    ],
)
def test_what_cannot_be_in_a_mail_is_an_error(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**options)


@given(st.text(max_size=60))
@example("a@b.org\n")
@example("a@b.org\x00")
def test_an_address_is_one_word_of_ascii(text: str) -> None:
    try:
        address = check_address(text)
    except InvalidAddress:
        return
    assert re.fullmatch(r"[!-~]+", address)
    assert not set(address) & set('<>(),:;"[]\\')


@pytest.mark.parametrize("address", ["user.1@example.org", "a+b@example.com", "o'neill@example.net"])
def test_usual_addresses_are_valid(address: str) -> None:
    assert check_address(address) == address
