"""How the campaign connects: TLS, certificates and logins; and that it runs on uvloop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

import asyncpool
from asyncpool.events import JobRetrying
from examples.email_campaign.campaign import EmailCampaign
from examples.email_campaign.connection import Timeouts
from examples.email_campaign.errors import RelayError
from examples.email_campaign.faults import Fault
from examples.email_campaign.relay import Tls
from tests.examples.email_desk import Desk
from tests.examples.email_parts import Office, id_of, make_database, marks, nothing_blocks_the_loop, relay_at
from tests.examples.email_tls import certificate, server_context

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # of aiosmtpd


@pytest.fixture(autouse=True)
def loop_is_never_blocked() -> Iterator[BlockBuster]:
    with nothing_blocks_the_loop() as blockbuster:
        yield blockbuster


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(tmp_path / "users.db", inactive=3)


def on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def on_asyncio(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


LOOPS = pytest.mark.parametrize("run", [on_asyncio, on_uvloop])


async def send_all(database: Path, desk: Desk, **relay: Any) -> None:
    async with desk.campaign(database, relay=relay_at(desk.port, 5.0, **relay)) as campaign:
        report = await campaign.run()
    assert (report.sent, report.failed, report.retries, report.left) == (3, 0, 0, 0)
    assert desk.accepted == {id_of(user): 1 for user in (1, 2, 3)}


@pytest.mark.parametrize("tls", [Tls.STARTTLS, Tls.IMPLICIT])
@LOOPS
def test_mails_and_the_login_go_over_tls(run: Any, database: Path, pem: Path, tls: Tls) -> None:
    async def main() -> None:
        options = {"tls_context": server_context(pem), "auth_require_tls": tls is Tls.STARTTLS}
        if tls is Tls.STARTTLS:
            options["require_starttls"] = True
        async with Desk(implicit=tls is Tls.IMPLICIT, auth_required=True, **options) as desk:
            trust = ssl.create_default_context(cafile=pem)
            await send_all(database, desk, tls=tls, context=trust, username="me", password="secret")
            assert set(desk.logins) == {"me:secret"}

    run(main())


@pytest.mark.parametrize("tls", [Tls.STARTTLS, Tls.IMPLICIT])
def test_a_certificate_that_is_not_trusted_ends_the_campaign(database: Path, pem: Path, tls: Tls) -> None:
    async def main() -> None:
        async with Desk(implicit=tls is Tls.IMPLICIT, tls_context=server_context(pem)) as desk:
            with pytest.raises(RelayError, match="certificate verify failed"):
                await send_all(database, desk, tls=tls, username="me", password="secret")
            assert desk.logins == []
            assert not desk.commands

    asyncio.run(main())


def test_a_server_without_starttls_gets_no_mail(database: Path) -> None:
    async def main() -> None:
        async with Desk() as desk:
            with pytest.raises(RelayError, match=r"cannot be used: .*STARTTLS"):
                await send_all(database, desk, tls=Tls.STARTTLS)
            assert not desk.commands

    asyncio.run(main())


def test_a_password_is_not_sent_in_plain_text_unless_that_is_allowed(database: Path) -> None:
    with pytest.raises(ValueError, match="the password would be sent without encryption"):
        relay_at(25, username="me", password="secret")

    async def main() -> None:
        async with Desk(auth_required=True, auth_require_tls=False) as desk:
            await send_all(database, desk, username="me", password="secret", plain_login=True)
            assert set(desk.logins) == {"me:secret"}

    asyncio.run(main())
    assert "secret" not in repr(relay_at(25, username="me", password="secret", plain_login=True))


def test_the_faults_of_the_debug_server_work_on_uvloop(database: Path) -> None:
    errors: list[str] = []

    def observe(event: asyncpool.Event) -> None:
        if isinstance(event, JobRetrying):
            errors.append(str(event.error))

    async def main() -> None:
        plan = {1: [Fault.CLOSING, Fault.BUSY], 2: [Fault.LOST], 3: [Fault.STALL]}
        options: dict[str, Any] = {"timeout": 1.0, "observers": [observe]}
        async with Office(plan) as office, office.campaign(database, **options) as campaign:
            report = await campaign.run()
        assert (report.sent, report.failed, report.left) == (3, 0, 0)
        assert office.mails == {id_of(1): 1, id_of(2): 2, id_of(3): 1}

    on_uvloop(main())
    assert errors == [
        "421 4.3.2 localhost is closing down",
        "451 4.3.0 try again later",
        "the mail server closed the connection after the end of the text",
        "the mail server did not respond in time after the end of the text",
    ]


def test_a_mail_that_is_cut_off_is_not_sent_to_its_end(database: Path) -> None:
    """A server that reads nothing fills the buffers; when it reads on, there is no more than was in them."""

    async def main() -> None:
        got = bytearray()
        is_stalled, may_read, is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for reply in ("220 ready", "250 hello", "250 ok", "250 ok", "354 go on"):
                writer.write(f"{reply}\r\n".encode())
                if not reply.startswith("354"):
                    await reader.readline()
            is_stalled.set()
            await may_read.wait()
            try:
                while chunk := await reader.read(1 << 20):
                    got.extend(chunk)
            except ConnectionError:
                pass
            writer.close()
            is_over.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1000)
        text = "x" * 70 + "\n"
        relay = relay_at(server.sockets[0].getsockname()[1], timeouts=Timeouts(block=30.0))
        campaign = EmailCampaign(database, relay=relay, workers=1, limit=1, text=text * 200_000)
        async with campaign:
            running = asyncio.create_task(campaign.run())
            await is_stalled.wait()
            await asyncio.sleep(0.2)
            campaign.pool.cancel()
            report = await running
        may_read.set()
        await is_over.wait()
        server.close()
        await server.wait_closed()

        assert report.cut_off == 1
        assert len(got) < len(text) * 200_000
        assert not got.endswith(b"\r\n.\r\n")

    on_uvloop(main())
    assert marks(database) == {}
