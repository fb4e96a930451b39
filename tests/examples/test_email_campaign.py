"""`EmailCampaign`, with a real SMTP server and a real database, and every fault there is."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

from examples.email_campaign.campaign import EmailCampaign
from examples.email_campaign.errors import CampaignError, DatabaseError, JournalError, RelayError
from examples.email_campaign.faults import Fault
from examples.email_campaign.relay import Relay
from examples.email_campaign.report import CampaignReport
from tests.examples.email_parts import (
    Office,
    id_of,
    make_database,
    marks,
    nothing_blocks_the_loop,
    query,
    relay_at,
    scripted_server,
)

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def loop_is_never_blocked() -> Iterator[BlockBuster]:
    with nothing_blocks_the_loop() as blockbuster:
        yield blockbuster


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Three users who are inactive, and one who is not."""
    return make_database(tmp_path / "users.db", inactive=3)


async def run(office: Office, database: Path, **options: Any) -> CampaignReport:
    async with office.campaign(database, **options) as campaign:
        return await campaign.run()


def figures(report: CampaignReport) -> tuple[int, int, int, int]:
    return report.sent, report.failed, report.retries, report.left


# -- who gets a mail --


async def test_each_inactive_user_gets_one_mail_and_it_is_written_down(database: Path) -> None:
    async with Office({}) as office:
        report = await run(office, database, workers=2)

    assert figures(report) == (3, 0, 0, 0)
    assert office.mails == {id_of(1): 1, id_of(2): 1, id_of(3): 1}
    assert marks(database) == {1: "sent", 2: "sent", 3: "sent"}


async def test_a_second_run_sends_nothing_and_another_campaign_does(database: Path) -> None:
    async with Office({}) as office:
        await run(office, database)
        assert figures(await run(office, database)) == (0, 0, 0, 0)
        assert len(office.accepted) == 3

        report = await run(office, database, name="summer-sale")

    assert report.sent == 3
    assert office.accepted[-1].message_id == "<summer-sale.3@example.com>"


async def test_who_is_inactive_is_the_same_for_all_runs_of_a_campaign(database: Path) -> None:
    async with Office({}) as office:
        assert (await run(office, database, limit=1)).sent == 1
        query(database, "INSERT INTO users VALUES (9, 'Late', 'user.9@example.org', '2026-01-01')")
        assert (await run(office, database)).sent == 2  # and not user 4, who was there 30 days before that


async def test_a_rate_may_be_asked_for(database: Path) -> None:
    async with Office({}) as office:
        assert (await run(office, database, rate=1000.0)).sent == 3


async def test_a_limit_bounds_a_run_and_tells_who_is_left(database: Path) -> None:
    async with Office({}) as office, office.campaign(database, limit=2) as campaign:
        assert campaign.total == 2
        report = await campaign.run()

    assert figures(report) == (2, 0, 0, 1)


async def test_a_name_may_hold_anything(database: Path) -> None:
    name = "Zoë\r\nBcc: everybody@example.org\r\n\r\n.\r\nDATA"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE users SET name = ? WHERE id = 1", (name,))
    async with Office({}) as office:
        await run(office, database, limit=1)

    mail = message_from_bytes(office.accepted[0].content, policy=policy.default)
    assert mail["Bcc"] is None
    assert mail["To"].addresses[0].addr_spec == "user.1@example.org"
    assert mail["To"].addresses[0].display_name == " ".join(name.split())
    assert " ".join(name.split()) in mail.get_content()


async def test_an_address_that_is_none_is_a_dead_letter_and_harms_no_other_mail(database: Path) -> None:
    query(database, "UPDATE users SET email = 'zoë@exämple.org' WHERE id = 1")
    async with Office({}) as office:
        report = await run(office, database)

    assert figures(report) == (2, 1, 0, 0)
    assert marks(database) == {1: "failed", 2: "sent", 3: "sent"}


# -- faults --


@pytest.mark.parametrize("fault", [Fault.CLOSING, Fault.BUSY, Fault.DROP])
async def test_a_passing_fault_is_tried_again_on_a_fresh_connection_and_sent_once(database: Path, fault: Fault) -> None:
    async with Office({2: [fault]}) as office:
        report = await run(office, database)

    assert figures(report) == (3, 0, 1, 0)
    assert office.attempts["user.2@example.org"] == 2
    assert office.mails == {id_of(1): 1, id_of(2): 1, id_of(3): 1}
    assert {mail.message_id: mail.connection for mail in office.accepted}[id_of(1)] == 1
    assert {mail.message_id: mail.connection for mail in office.accepted}[id_of(2)] == 2
    assert office.connections == 2


async def test_a_mailbox_that_does_not_exist_is_a_dead_letter_at_once_and_the_connection_goes_on(
    database: Path,
) -> None:
    async with Office({2: [Fault.NO_MAILBOX]}) as office, office.campaign(database) as campaign:
        report = await campaign.run()
        letters = await asyncio.to_thread(list, campaign.dead_letters)

    assert figures(report) == (2, 1, 0, 0)
    assert report.reasons == {"550": 1}
    assert office.connections == 1
    assert [(letter.job.id, letter.error, letter.attempts) for letter in letters] == [
        (2, "550 5.1.1 no such mailbox", 1)
    ]
    assert marks(database) == {1: "sent", 2: "failed", 3: "sent"}


async def test_a_drop_after_the_mail_was_accepted_is_tried_again_with_the_same_id(database: Path) -> None:
    async with Office({2: [Fault.LOST]}) as office:
        report = await run(office, database)

    assert figures(report) == (3, 0, 1, 0)
    assert office.mails == {id_of(1): 1, id_of(2): 2, id_of(3): 1}


async def test_a_server_that_goes_silent_is_left_after_the_timeout(database: Path) -> None:
    async with Office({2: [Fault.STALL]}) as office:
        report = await run(office, database, timeout=0.5)

    assert figures(report) == (3, 0, 1, 0)
    assert office.mails == {id_of(1): 1, id_of(2): 1, id_of(3): 1}
    assert office.connections == 2


async def test_a_connection_in_the_middle_of_a_mail_is_closed_without_a_word(database: Path) -> None:
    heard: list[str] = []
    options: dict[str, Any] = {"workers": 1, "limit": 1}
    async with scripted_server(heard, RCPT="") as relay, EmailCampaign(database, relay=relay, **options) as campaign:
        running = asyncio.create_task(campaign.run())
        while campaign.pool.stats.retries == 0:
            await asyncio.sleep(0.01)
        campaign.pool.cancel()
        report = await running

    assert (report.sent, report.left) == (0, 3)
    assert heard[:4] == ["GREETING", "EHLO", "MAIL", "RCPT"]
    assert heard[4:5] != ["QUIT"]


async def test_a_run_does_not_try_dead_letters_again(database: Path) -> None:
    async with Office({2: [Fault.NO_MAILBOX]}) as office:
        await run(office, database)
        assert figures(await run(office, database)) == (0, 0, 0, 0)


# -- ends --


async def test_a_mail_cut_off_in_the_middle_is_unfinished_and_sent_by_the_next_run(database: Path) -> None:
    async with Office({1: [Fault.STALL]}) as office:
        async with office.campaign(database) as campaign:
            running = asyncio.create_task(campaign.run())
            await office.reached[Fault.STALL].wait()
            campaign.pool.cancel()
            report = await running
        assert (report.sent, report.cut_off, report.left) == (0, 1, 3)
        assert marks(database) == {}

        assert (await run(office, database)).sent == 3

    assert office.mails == {id_of(1): 1, id_of(2): 1, id_of(3): 1}


async def test_a_drain_sends_what_was_accepted_and_tells_what_is_left(tmp_path: Path) -> None:
    database = make_database(tmp_path / "many.db", inactive=50)
    async with Office({}, latency=(0.02, 0.02)) as office, office.campaign(database, workers=3) as campaign:
        running = asyncio.create_task(campaign.run())
        await office.has_mail.wait()
        campaign.pool.drain()
        report = await running

    assert report.cut_off == 0
    assert report.sent == len(office.accepted) == len(marks(database))
    assert report.sent + report.left == 50
    assert 1 <= report.sent <= 3 * 3  # done, in progress, and waiting


async def test_leaving_by_an_exception_writes_down_what_was_sent(tmp_path: Path) -> None:
    database = make_database(tmp_path / "many.db", inactive=50)
    async with Office({}, latency=(0.01, 0.01)) as office:
        with pytest.raises(ZeroDivisionError):
            async with office.campaign(database, workers=3) as campaign:
                running = asyncio.create_task(campaign.run())
                await office.has_mail.wait()
                raise ZeroDivisionError
        await running

    unknown = set(office.mails) - {id_of(user) for user in marks(database)}
    assert len(unknown) <= 3


@pytest.mark.parametrize("by", ["timeout", "cancel"])
async def test_once_the_server_has_the_mail_nothing_makes_it_another_attempt(database: Path, by: str) -> None:
    timeout = 0.3 if by == "timeout" else 30.0
    async with Office({}) as office, office.campaign(database, timeout=timeout) as campaign:
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the journal has to wait
            running = asyncio.create_task(campaign.run())
            await office.has_mail.wait()
            await asyncio.sleep(0.1)
            if by == "cancel":
                campaign.pool.cancel()
            await asyncio.sleep(0.4)
            assert not running.done()
            other.execute("COMMIT")
        report = await running

    assert office.mails[id_of(1)] == 1
    assert marks(database)[1] == "sent"
    assert report.retries == 0
    assert report.cut_off == 0
    assert report.sent == len(office.accepted)


async def test_a_mail_that_cannot_be_written_down_ends_the_campaign_and_is_not_sent_again(tmp_path: Path) -> None:
    database = make_database(tmp_path / "many.db", inactive=50)
    async with Office({}) as office:
        with pytest.raises(
            JournalError, match=r"can no longer be recorded .*: disk is full; users who may have .*: user\."
        ) as caught:
            async with office.campaign(database, workers=3) as campaign:
                query(
                    database,
                    "CREATE TRIGGER full BEFORE INSERT ON mails WHEN NEW.user > 20 "
                    "BEGIN SELECT RAISE(ABORT, 'disk is full'); END",
                )
                await campaign.run()

    unknown = [mail for mail in office.accepted if mail.message_id not in {id_of(user) for user in marks(database)}]
    assert 1 <= len(unknown) <= 3
    assert set(office.mails.values()) == {1}
    assert not list(tmp_path.glob("*dead-letters*"))
    for mail in unknown:
        assert mail.recipient in str(caught.value)


# -- servers that reject the campaign --


async def refusal(database: Path, relay: Relay, **options: Any) -> str:
    with pytest.raises(RelayError) as caught:
        async with EmailCampaign(database, relay=relay, workers=2, **options) as campaign:
            await campaign.run()
    assert set(marks(database).values()) <= {"sent"}
    assert not list(database.parent.glob("*dead-letters*"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("replies", "sentence"),
    [
        ({"GREETING": "554 no service for you"}, "rejected the connection: 554 no service for you"),
        ({"EHLO": "550 who are you", "HELO": "550 who are you"}, "rejected the connection: 550 who are you"),
        ({"GREETING": ""}, "did not respond within 0.2 s"),
        ({"EHLO": ""}, "did not respond within 0.2 s"),
        ({"MAIL": "553 not a sender of ours"}, "rejected the sender news@example.com: 553 not a sender of ours"),
    ],
)
async def test_a_relay_that_refuses_us_ends_the_campaign_with_a_sentence(
    database: Path, replies: dict[str, str], sentence: str
) -> None:
    async with scripted_server(**replies) as relay:
        assert sentence in await refusal(database, relay)


async def test_a_relay_that_is_not_there_is_told_in_a_sentence(database: Path) -> None:
    async with scripted_server() as relay:
        pass

    assert f"the mail server 127.0.0.1:{relay.port} cannot be reached" in await refusal(database, relay)


async def test_a_relay_that_wants_a_login_and_refuses_ours(database: Path) -> None:
    replies = {"EHLO": "250-hello\r\n250 AUTH PLAIN", "AUTH": "535 wrong password"}
    async with scripted_server(**replies) as relay:
        relay = relay_at(relay.port, username="me", password="?", plain_login=True)
        assert "rejected the login: 535 wrong password" in await refusal(database, relay)


async def test_a_relay_that_goes_away_for_long_ends_the_campaign(tmp_path: Path) -> None:
    database = make_database(tmp_path / "many.db", inactive=50)
    slow = Office({}, latency=(0.01, 0.01))
    async with slow as office, office.campaign(database, workers=3, retry_for=0.2) as campaign:
        running = asyncio.create_task(campaign.run())
        await office.has_mail.wait()
        await office.stop()
        with pytest.raises(RelayError, match="cannot be reached"):
            await running

    assert len(set(office.mails) - {id_of(user) for user in marks(database)}) <= 3


async def test_a_relay_that_goes_away_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    database = make_database(tmp_path / "many.db", inactive=20)
    async with Office({}, latency=(0.01, 0.01)) as office, office.campaign(database, workers=3) as campaign:
        running = asyncio.create_task(campaign.run())
        await office.has_mail.wait()
        port = office.port
        await office.stop()
        await office.start(port)
        report = await running

    assert (report.sent, report.failed, report.left) == (20, 0, 0)


# -- dead letters --


async def test_replay_sends_dead_letters_and_they_leave_the_file(database: Path) -> None:
    async with Office({2: [Fault.NO_MAILBOX]}) as office:
        await run(office, database)
        for sent in (1, 0):
            async with office.campaign(database) as campaign:
                report = await campaign.replay()
                assert (report.sent, report.failed) == (sent, 0)
                assert await asyncio.to_thread(list, campaign.dead_letters) == []

    assert office.mails == {id_of(1): 1, id_of(2): 1, id_of(3): 1}
    assert marks(database) == {1: "sent", 2: "sent", 3: "sent"}


async def test_what_fails_again_is_a_dead_letter_again(database: Path) -> None:
    async with Office({2: [Fault.NO_MAILBOX] * 2}) as office:
        await run(office, database)
        async with office.campaign(database) as campaign:
            report = await campaign.replay()
            letters = await asyncio.to_thread(list, campaign.dead_letters)

    assert (report.sent, report.failed) == (0, 1)
    assert [letter.job.id for letter in letters] == [2]
    assert marks(database)[2] == "failed"


async def test_a_replay_cut_short_forgets_nobody(database: Path) -> None:
    missing = [Fault.NO_MAILBOX]
    async with Office({1: [*missing, Fault.STALL], 2: missing, 3: missing}) as office:
        await run(office, database)
        async with office.campaign(database) as campaign:
            running = asyncio.create_task(campaign.replay())
            await office.reached[Fault.STALL].wait()
            campaign.pool.cancel()
            report = await running
        assert (report.cut_off, report.left) == (1, 3)

        assert (await run(office, database)).sent == 3
        async with office.campaign(database) as campaign:
            report = await campaign.replay()  # the letters that had stayed are older than the mails
            assert (report.sent, report.left) == (0, 0)

    assert office.mails == {id_of(1): 1, id_of(2): 1, id_of(3): 1}


async def test_replay_takes_another_file_and_leaves_letters_of_other_campaigns(database: Path, tmp_path: Path) -> None:
    shared = tmp_path / "letters.jsonl"
    async with Office({2: [Fault.NO_MAILBOX] * 2}) as office:
        await run(office, database, dead_letters=shared)
        await run(office, database, dead_letters=shared, name="summer-sale")
        async with office.campaign(database) as campaign:
            assert (await campaign.replay(shared)).sent == 1
        async with office.campaign(database, dead_letters=shared) as campaign:
            left = await asyncio.to_thread(list, campaign.dead_letters)

    assert [letter.pool for letter in left] == ["summer-sale"]


# -- databases that cannot be used --


async def test_a_database_has_one_campaign_at_a_time(database: Path) -> None:
    async with Office({}) as office:
        async with office.campaign(database) as campaign:
            with pytest.raises(DatabaseError, match="another campaign is using"):
                async with office.campaign(database, name="other"):
                    pass
            await campaign.run()
        await run(office, database, name="other")  # and now it may


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a database, but long enough to have a header of one" * 9, "file is not a database"),
        (b"", "no such table: users"),
        (None, "unable to open database file"),
    ],
)
async def test_a_database_that_cannot_be_used_is_told_in_a_sentence(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "users.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatabaseError, match=f"the database {path} cannot be used: {sentence}"):
        async with EmailCampaign(path, relay=relay_at(1)):
            pass


async def test_a_database_that_breaks_while_it_is_read_ends_the_campaign_with_a_sentence(tmp_path: Path) -> None:
    database = make_database(tmp_path / "many.db", inactive=50)
    async with Office({}) as office:
        with pytest.raises(CampaignError, match="no such table: users"):
            async with office.campaign(database) as campaign:
                query(database, "DROP TABLE users")
                await campaign.run()


@pytest.mark.parametrize("name", ["", "two words", "<x>", "-a", "a@b"])
async def test_a_campaign_needs_a_name_that_a_message_id_can_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits and single hyphens"):
        EmailCampaign(tmp_path / "users.db", relay=Relay(host="", port=1), name=name)


@pytest.mark.parametrize("options", [{"retry_for": -1.0}, {"retry_delay": -1.0}, {"max_refusals": 0}, {"workers": 0}])
async def test_a_number_out_of_range_is_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        EmailCampaign(tmp_path / "users.db", relay=relay_at(25), **options)
