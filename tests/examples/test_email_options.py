"""The arguments of the e-mail campaign, and a run with most of them against a server with TLS and a login."""

from __future__ import annotations

import asyncio
import os
import sys
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from examples.email_campaign.connection import Timeouts
from examples.email_campaign.options import parse
from examples.email_campaign.relay import Relay, Tls
from tests.examples.email_desk import Desk
from tests.examples.email_parts import make_database, marks
from tests.examples.email_tls import certificate, server_context

ROOT = Path(__file__).parents[2]


def relay_of(*arguments: str) -> Relay:
    relay = parse(arguments).relay
    assert relay is not None
    return relay


@pytest.mark.parametrize(
    ("smtp", "tls"),
    [
        ("localhost:25", Tls.NONE),
        ("127.0.0.1:587", Tls.NONE),
        ("[::1]:25", Tls.NONE),
        ("localhost:465", Tls.IMPLICIT),
        ("mail.example.com:465", Tls.IMPLICIT),
        ("mail.example.com:587", Tls.STARTTLS),
        ("192.0.2.1:25", Tls.STARTTLS),
    ],
)
def test_a_network_needs_tls_unless_told_otherwise(smtp: str, tls: Tls) -> None:
    assert relay_of("--smtp", smtp).tls is tls
    assert relay_of("--smtp", smtp, "--tls", "none").tls is Tls.NONE


def test_the_time_limits_are_those_of_the_standard_unless_given() -> None:
    assert relay_of("--smtp", "mx:25").timeouts == Timeouts()
    assert Timeouts().end == 600.0
    assert relay_of("--smtp", "mx:25", "--timeout", "7").timeouts == Timeouts.all(7.0)
    assert parse([]).timeouts == Timeouts.all(3.0)  # of the demo


def test_a_password_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_USERNAME", "me")
    monkeypatch.setenv("SMTP_PASSWORD", "from the environment")
    relay = relay_of("--smtp", "mx:25")
    assert (relay.username, relay.password) == ("me", "from the environment")

    (tmp_path / "password").write_text("from a file\n")
    relay = relay_of("--smtp", "mx:25", "--username", "you", "--password-file", str(tmp_path / "password"))
    assert (relay.username, relay.password) == ("you", "from a file")


def test_a_login_without_tls_must_be_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "secret")
    arguments = ("--smtp", "mx:25", "--username", "me", "--tls", "none")
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "the password would be sent without encryption" in capsys.readouterr().err
    assert relay_of(*arguments, "--plain-login").plain_login


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # of aiosmtpd
def test_a_campaign_with_a_template_over_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    database = make_database(tmp_path / "users.db", inactive=2)
    (tmp_path / "text.txt").write_text("Guten Tag $name ($email, Nr. $id)!\n\nAbmelden: $unsubscribe\n", "utf-8")
    options = {
        "--db": database,
        "--tls": "starttls",
        "--ca": pem,
        "--username": "me",
        "--from": "Grüße <info@example.net>",
        "--subject": "Schöne Grüße",
        "--template": tmp_path / "text.txt",
        "--unsubscribe": "https://example.net/leave?user=$id",
    }

    async def main() -> Desk:
        context = server_context(pem)
        async with Desk(tls_context=context, require_starttls=True, auth_required=True) as desk:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "examples.email_campaign", "--smtp", f"127.0.0.1:{desk.port}"),
                *(str(part) for option in options.items() for part in option),
                cwd=ROOT,
                env={**os.environ, "SMTP_PASSWORD": "secret"},
                stdout=asyncio.subprocess.DEVNULL,
            )
            assert await process.wait() == 0
        return desk

    desk = asyncio.run(main())
    assert set(desk.logins) == {"me:secret"}
    assert marks(database) == {1: "sent", 2: "sent"}
    mails = sorted(desk.contents, key=lambda content: message_from_bytes(content)["Message-ID"])
    mail = message_from_bytes(mails[0], policy=policy.default)
    assert mail["Message-ID"] == "<we-miss-you.1@example.net>"
    assert str(mail["From"]) == "Grüße <info@example.net>"
    assert mail["Subject"] == "Schöne Grüße"
    assert mail["List-Unsubscribe"] == "<https://example.net/leave?user=1>"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert mail.get_content().splitlines() == [
        "Guten Tag User 1 (user.1@example.org, Nr. 1)!",
        "",
        "Abmelden: https://example.net/leave?user=1",
    ]
