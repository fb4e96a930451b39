"""The e-mail campaign with a real Postfix that is overloaded, greylists, limits the rate, and is restarted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.email_campaign.campaign import EmailCampaign
from tests.examples.email_parts import id_of, make_database, marks, relay_at
from tests.servers.postfix import Postfix, is_usable, policy_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_usable(), reason="needs Postfix, and root (Debian: apt install postfix)"),
]
MAILS = 100
Decide = Callable[[str], "str | None"]


@pytest.fixture(scope="module")
def server() -> Iterator[Postfix]:
    server = Postfix()
    yield server
    server.close()


def send(server: Postfix, database: Path, name: str, decide: Decide, **options: Any) -> None:
    """Run a campaign; each user must get one mail, none may fail."""

    async def main() -> None:
        campaign = EmailCampaign(
            make_database(database, inactive=MAILS),
            relay=relay_at(server.port, timeout=30.0),
            name=name,
            retry_delay=0.2,
            **options,
        )
        async with policy_service(server.policy_port, decide), campaign:
            report = await campaign.run()
        assert (report.sent, report.failed, report.ambiguous, report.left) == (MAILS, 0, 0, 0)

    asyncio.run(main())
    assert set(marks(database).values()) == {"sent"}
    sent = {id: count for id, count in server.accepted().items() if id.startswith(f"<{name}.")}
    assert Counter(sent) == Counter(id_of(user).replace("we-miss-you", name) for user in range(1, MAILS + 1))


def test_a_full_disk_costs_no_mail(server: Postfix, tmp_path: Path) -> None:
    began: list[float] = []

    def decide(address: str) -> str | None:
        now = asyncio.get_running_loop().time()
        began.append(now)
        return "452 4.3.1 Insufficient system storage" if 0.1 < now - began[0] < 0.6 else None

    send(server, tmp_path / "users.db", "full", decide)


def test_greylisting_costs_no_mail(server: Postfix, tmp_path: Path) -> None:
    seen: dict[str, float] = {}

    def decide(address: str) -> str | None:
        now = asyncio.get_running_loop().time()
        return "450 4.2.0 Greylisted" if now - seen.setdefault(address, now) < 0.5 else None

    send(server, tmp_path / "users.db", "grey", decide)


def test_a_limit_of_mails_costs_no_mail(server: Postfix, tmp_path: Path) -> None:
    times: list[float] = []

    def decide(address: str) -> str | None:
        now = asyncio.get_running_loop().time()
        if len(times) >= 40 and now - times[-40] < 0.5:
            return "450 4.7.1 Too many mails"
        times.append(now)
        return None

    send(server, tmp_path / "users.db", "limit", decide)
