"""Mail servers that are busy, slow, picky, restarted or gone: no mail is lost, none is sent twice without a word."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

import asyncpool
from asyncpool.events import BreakerOpened
from examples.email_campaign.connection import Timeouts
from examples.email_campaign.errors import RefusalError, RelayError
from examples.email_campaign.replies import Phase, Refused
from examples.email_campaign.report import CampaignReport
from tests.examples.email_desk import Desk
from tests.examples.email_parts import id_of, make_database, marks, nothing_blocks_the_loop, query, relay_at

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def loop_is_never_blocked() -> Iterator[BlockBuster]:
    with nothing_blocks_the_loop() as blockbuster:
        yield blockbuster


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Sixty users who are inactive, and one who is not."""
    return make_database(tmp_path / "users.db", inactive=60)


async def run(desk: Desk, database: Path, **options: Any) -> CampaignReport:
    async with desk.campaign(database, **options) as campaign:
        return await campaign.run()


def everybody(users: int = 60) -> Counter[str]:
    return Counter(id_of(user) for user in range(1, users + 1))


def for_seconds(seconds: float, command: str, reply: str) -> Callable[[str, str], str | None]:
    """Reply to a command with this for some seconds from its first one on."""
    until: list[float] = []

    def decide(heard: str, address: str) -> str | None:
        now = asyncio.get_running_loop().time()
        if heard == command and not until:
            until.append(now + seconds)
        return reply if heard == command and now < until[0] else None

    return decide


# -- temporary refusals --


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("RCPT", "452 4.3.1 insufficient system storage"),
        ("MAIL", "451 4.3.0 temporary lookup failure"),
        ("END", "451 4.3.0 queue file write error"),
        ("RCPT", "421 4.3.2 shutting down"),
    ],
)
async def test_an_overload_pauses_the_campaign_and_costs_no_mail(database: Path, command: str, reply: str) -> None:
    opened: list[BreakerOpened] = []

    def observe(event: asyncpool.Event) -> None:
        if isinstance(event, BreakerOpened):
            opened.append(event)

    async with Desk(for_seconds(0.3, command, reply)) as desk:
        report = await run(desk, database, observers=[observe])

    assert (report.sent, report.failed, report.deferred, report.left) == (60, 0, 0, 0)
    assert desk.accepted == everybody()
    assert opened  # it does not try all mails while the server is overloaded
    assert desk.commands["MAIL"] < 150


async def test_greylisting_delays_each_mail_and_stops_no_other(database: Path) -> None:
    seen: dict[str, float] = {}

    def decide(command: str, address: str) -> str | None:
        now = asyncio.get_running_loop().time()
        is_early = command == "RCPT" and now - seen.setdefault(address, now) < 0.3
        return "450 4.2.0 greylisted, try again later" if is_early else None

    async with Desk(decide) as desk:
        report = await run(desk, database, workers=5)

    assert (report.sent, report.failed, report.deferred, report.left) == (60, 0, 0, 0)
    assert desk.accepted == everybody()
    assert desk.connections == 5  # a reply about one mail does not spoil the connection


async def test_a_limit_of_mails_costs_no_mail(database: Path) -> None:
    times: list[float] = []

    def decide(command: str, address: str) -> str | None:
        now = asyncio.get_running_loop().time()
        if command != "MAIL":
            return None
        if len(times) >= 20 and now - times[-20] < 0.3:
            return "450 4.7.1 Error: too much mail from 127.0.0.1"
        times.append(now)
        return None

    async with Desk(decide) as desk:
        report = await run(desk, database)

    assert (report.sent, report.failed, report.left) == (60, 0, 0)
    assert desk.accepted == everybody()


async def test_a_mail_that_is_refused_until_the_end_is_left_to_the_next_run(database: Path) -> None:
    is_full = True

    def decide(command: str, address: str) -> str | None:
        return "452 4.2.2 over quota" if is_full and command == "RCPT" and address == "user.7@example.org" else None

    async with Desk(decide) as desk:
        report = await run(desk, database, retry_for=0.2)
        assert (report.sent, report.failed, report.deferred, report.left) == (59, 0, 1, 1)
        assert 7 not in marks(database)
        assert not list(database.parent.glob("*dead-letters*"))

        is_full = False
        report = await run(desk, database)

    assert (report.sent, report.left) == (1, 0)
    assert desk.accepted == everybody()


async def test_a_server_that_stays_overloaded_stops_the_campaign_and_the_next_run_continues(database: Path) -> None:
    is_full = False

    def decide(command: str, address: str) -> str | None:
        return "452 4.3.1 no space" if is_full and command == "MAIL" else None

    async with Desk(decide) as desk:
        assert (await run(desk, database, limit=20)).sent == 20
        is_full = True
        with pytest.raises(RelayError, match=r"has sent no mail for 0.3 s: 452 4.3.1 no space"):
            await run(desk, database, retry_for=0.3)
        assert len(marks(database)) == 20
        assert not list(database.parent.glob("*dead-letters*"))

        is_full = False
        assert (await run(desk, database)).sent == 40

    assert desk.accepted == everybody()


# -- the end of the text --


async def test_a_server_may_take_its_time_for_the_reply_to_the_text(database: Path) -> None:
    async def decide(command: str, address: str) -> None:
        if command == "END":
            await asyncio.sleep(0.6)

    async with Desk(decide) as desk:
        timeouts = Timeouts(greeting=0.4, command=0.4, data=0.4, block=0.4, end=30.0)
        relay = relay_at(desk.port, timeouts=timeouts)
        report = await run(desk, database, relay=relay, limit=10)

    assert (report.sent, report.retries) == (10, 0)
    assert desk.accepted == everybody(10)


async def test_a_reply_that_is_lost_once_causes_one_more_attempt(database: Path) -> None:
    async with Desk() as desk:
        lost: set[str] = set()

        def decide(command: str, address: str) -> str | None:
            if command == "END" and address not in lost:
                lost.add(address)
                desk.accept(f"Message-ID: {id_of(int(address.split('.')[1].split('@', maxsplit=1)[0]))}\r\n".encode())
                return ""
            return None

        desk.decide = decide
        report = await run(desk, database, limit=3)

    assert (report.sent, report.failed, report.ambiguous, report.retries) == (3, 0, 0, 3)
    assert desk.accepted == Counter({id_of(user): 2 for user in (1, 2, 3)})
    assert set(marks(database).values()) == {"sent"}


def loses_user_2(command: str, address: str) -> str | None:
    return "" if command == "END" and address == "user.2@example.org" else None


async def test_a_reply_that_is_lost_twice_is_reported_as_ambiguous_and_not_tried_again(database: Path) -> None:
    async with Desk(loses_user_2) as desk:
        async with desk.campaign(database, limit=3) as campaign:
            report = await campaign.run()
            letters = await asyncio.to_thread(list, campaign.dead_letters)
        assert (report.sent, report.failed, report.ambiguous) == (2, 0, 1)
        assert [(letter.job.id, letter.error) for letter in letters] == [
            (2, "the mail server closed the connection after the end of the text")
        ]
        assert marks(database)[2] == "ambiguous"
        assert desk.commands["END"] == 2 + 2

        report = await run(desk, database)
        assert (report.sent, report.ambiguous, report.left) == (57, 0, 0)
        assert desk.commands["END"] == 4 + 57

        desk.decide = lambda command, address: None
        async with desk.campaign(database) as campaign:
            assert (await campaign.replay()).sent == 1  # somebody has decided to send it again
    assert marks(database)[2] == "sent"


async def test_a_reply_that_is_lost_once_in_each_of_two_runs_is_ambiguous_too(database: Path) -> None:
    query(database, "UPDATE users SET last_seen = '2025-06-01' WHERE id <> 2")  # all others were here

    def loses_and_closes(command: str, address: str) -> str | None:
        if command == "END":
            return ""
        return "421 shutting down" if desk.commands["END"] else None

    async with Desk(loses_and_closes) as desk:
        with pytest.raises(RelayError):
            await run(desk, database, retry_for=0.2)
        assert marks(database) == {2: "unclear"}
        assert desk.commands["END"] == 1

        desk.decide = loses_user_2
        report = await run(desk, database)
        assert (report.sent, report.failed, report.ambiguous) == (0, 0, 1)
        assert marks(database) == {2: "ambiguous"}
        assert desk.commands["END"] == 2


async def test_a_server_that_is_silent_after_the_text_is_ambiguous_too(database: Path) -> None:
    async def decide(command: str, address: str) -> None:
        if command == "END" and address == "user.1@example.org":
            await asyncio.Event().wait()

    async with Desk(decide) as desk:
        report = await run(desk, database, timeout=0.3, limit=2)

    assert (report.sent, report.failed, report.ambiguous) == (1, 0, 1)
    assert marks(database) == {1: "ambiguous", 2: "sent"}


# -- contact with the server --


async def test_refusals_for_long_and_a_restart_then_do_not_stop_the_campaign(database: Path) -> None:
    refused = 0

    async with Desk() as desk:

        async def decide(command: str, address: str) -> str | None:
            nonlocal refused
            if command != "RCPT" or refused == 15:
                return None
            refused += 1
            await asyncio.sleep(0.03)  # in all, longer than retry_for
            if refused == 15:
                restart.append(asyncio.create_task(restart_soon()))
            return f"550 5.1.1 no such mailbox {refused}"

        async def restart_soon() -> None:
            await desk.stop()
            await asyncio.sleep(0.1)
            await desk.start()

        restart: list[asyncio.Task[None]] = []
        desk.decide = decide
        report = await run(desk, database, workers=1, retry_for=0.3)

    assert report.failed in (14, 15)  # the last refusal may be lost in the restart
    assert report.sent == 60 - report.failed
    assert report.left == 0


# -- permanent refusals --


async def test_a_mail_that_is_too_large_is_its_own_fault(database: Path) -> None:
    def decide(command: str, address: str) -> str | None:
        return "552 5.3.4 Message size exceeds fixed limit" if command == "MAIL" and refuses.pop() else None

    refuses = [False] * 200 + [True] + [False] * 5
    async with Desk(decide) as desk:
        report = await run(desk, database, workers=1)

    assert (report.sent, report.failed, report.left) == (59, 1, 0)
    assert report.reasons == {"552": 1}
    assert marks(database)[6] == "failed"


@pytest.mark.parametrize("reply", ["553 5.1.8 sender rejected", "550 5.7.1 not allowed", "530 5.7.0 log in first"])
async def test_a_sender_that_is_refused_stops_the_campaign(database: Path, reply: str) -> None:
    async with Desk(lambda command, address: reply if command == "MAIL" else None) as desk:
        with pytest.raises(RelayError, match=f"rejected the sender news@example.com: {reply}"):
            await run(desk, database)

    assert marks(database) == {}
    assert not list(database.parent.glob("*dead-letters*"))


@pytest.mark.parametrize("workers", [1, 10])
async def test_the_same_refusal_for_everybody_stops_the_campaign_and_nobody_is_marked(
    database: Path, workers: int
) -> None:
    refuses = False

    def decide(command: str, address: str) -> str | None:
        return f"554 5.7.1 <{address}>: Relay access denied" if refuses and command == "RCPT" else None

    async with Desk(decide) as desk:
        assert (await run(desk, database, limit=5)).sent == 5
        refuses = True
        with pytest.raises(RefusalError, match=r"refused 20 mails in a row with the same reply: 554 5.7.1 <.*still to"):
            await run(desk, database, workers=workers)
        assert len(marks(database)) == 5
        assert not list(database.parent.glob("*dead-letters*"))

        refuses = False
        report = await run(desk, database)

    assert (report.sent, report.left) == (55, 0)
    assert desk.accepted == everybody()


def refusing_desk() -> Desk:
    return Desk(lambda command, address: "554 5.7.1 no" if command == "RCPT" else None)


async def test_if_the_answer_is_to_continue_such_refusals_become_dead_letters(database: Path) -> None:
    asked: list[str] = []

    async def on_refusals(sentence: str) -> bool:
        asked.append(sentence)
        assert campaign.pool.is_paused
        return True

    options: dict[str, Any] = {"workers": 4, "max_refusals": 5, "on_refusals": on_refusals}
    async with refusing_desk() as desk, desk.campaign(database, **options) as campaign:
        report = await campaign.run()

    assert asked == ["the mail server refused 5 mails in a row with the same reply: 554 5.7.1 no"]
    assert (report.sent, report.failed, report.left) == (0, 60, 0)
    assert set(marks(database).values()) == {"failed"}


async def test_if_the_answer_is_no_the_campaign_stops(database: Path) -> None:
    async def on_refusals(sentence: str) -> bool:
        return False

    async with refusing_desk() as desk:
        with pytest.raises(RefusalError):
            await run(desk, database, max_refusals=5, on_refusals=on_refusals)
    assert marks(database) == {}


async def test_a_drain_while_a_question_is_open_leaves_the_mails_to_the_next_run(database: Path) -> None:
    is_asked = asyncio.Event()

    async def on_refusals(sentence: str) -> bool:
        is_asked.set()
        await asyncio.Event().wait()
        return True

    options: dict[str, Any] = {"max_refusals": 5, "on_refusals": on_refusals}
    async with refusing_desk() as desk, desk.campaign(database, **options) as campaign:
        running = asyncio.create_task(campaign.run())
        await is_asked.wait()
        campaign.pool.drain(drain_timeout=0.1)
        report = await running
    assert report.sent == 0
    assert report.left + report.failed == 60


async def test_different_refusals_and_those_with_mails_between_them_are_dead_letters(database: Path) -> None:
    def decide(command: str, address: str) -> str | None:
        number = int(address.split(".")[1].split("@", maxsplit=1)[0]) if command == "RCPT" else 0
        if 1 <= number <= 10:
            return f"550 5.1.1 no mailbox {number}"  # each with a text of its own
        return "550 5.1.1 no mailbox" if number % 4 else None  # three in a row

    async with Desk(decide) as desk:
        report = await run(desk, database, workers=1, max_refusals=4)

    failed = 10 + sum(1 for number in range(11, 61) if number % 4)
    assert (report.sent, report.failed, report.left) == (60 - failed, failed, 0)
    assert report.reasons == {"550": failed}


@pytest.mark.parametrize(
    ("phase", "code", "text", "about"),
    [
        (Phase.SENDER, 553, "5.1.8 unknown sender", "sender"),
        (Phase.SENDER, 550, "no", "sender"),
        (Phase.SENDER, 552, "too big", "mail"),
        (Phase.SENDER, 554, "5.3.4 too big", "mail"),
        (Phase.SENDER, 450, "4.7.1 too much mail", "server"),
        (Phase.RECIPIENT, 550, "5.1.1 unknown", "mail"),
        (Phase.RECIPIENT, 450, "4.2.0 greylisted", "mail"),
        (Phase.RECIPIENT, 451, "try later", "mail"),
        (Phase.RECIPIENT, 452, "no space", "server"),
        (Phase.RECIPIENT, 452, "4.2.2 over quota", "mail"),
        (Phase.RECIPIENT, 452, "4.3.1 no space", "server"),
        (Phase.RECIPIENT, 421, "4.7.0 too many errors", "server"),
        (Phase.END, 451, "local error", "server"),
        (Phase.END, 451, "4.7.1 greylisted", "mail"),
        (Phase.END, 554, "5.6.0 spam", "mail"),
    ],
)
async def test_what_a_refusal_is_about(phase: Phase, code: int, text: str, about: str) -> None:
    refused = Refused(code, text, phase)
    assert (refused.is_about_sender, refused.is_about_server) == (about == "sender", about == "server")


# -- addresses --


@pytest.mark.parametrize(
    "address",
    ["<a@b.org>", "a@b.org,c@d.org", "a@b.org\r\nBcc: everybody@example.org", "zoë@example.org", "", "a@", "a b@c.org"],
)
async def test_what_is_not_an_address_is_a_dead_letter_and_no_command(database: Path, address: str) -> None:
    query(database, f"UPDATE users SET email = '{address}' WHERE id = 1")
    async with Desk() as desk, desk.campaign(database, limit=3) as campaign:
        report = await campaign.run()
        letters = await asyncio.to_thread(list, campaign.dead_letters)

    assert (report.sent, report.failed) == (2, 1)
    assert report.reasons == {"InvalidAddress": 1}
    assert letters[0].error.startswith(f"{address!r} is not a valid address: ")
    assert desk.commands["RCPT"] == 2
    assert marks(database)[1] == "failed"


async def test_an_international_domain_is_sent_in_its_ascii_form(database: Path) -> None:
    query(database, "UPDATE users SET email = 'zoe@exämple.org' WHERE id = 1")
    async with Desk() as desk:
        assert (await run(desk, database, limit=1)).sent == 1

    assert b"zoe@xn--exmple-cua.org" in desk.contents[0]
