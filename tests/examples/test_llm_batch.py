"""`python -m examples.llm_batch`: batches for its fake API, and the command as a user runs it."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import asyncpool.progress.displays  # noqa: F401 -- rich reads files when it is imported, which must not be in a test
from asyncpool import RetryAfter
from asyncpool.testing import run
from examples import llm_batch
from examples.llm_api import REQUESTS, TOKENS, LlmApi, count_tokens
from examples.llm_batch import Batch, Options, Overloaded, Prompt, TooManyRequests, check, tokens_of

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.llm_batch"]
GIVE_UP = 60.0


def asked(*, overloads: float = 0.0, faults: float = 0.0, **options: Any) -> Batch:
    """Run a batch on virtual time, at the speed of a real API."""
    wanted = Options(speed=1.0, **options)
    batch = Batch(wanted, LlmApi(speed=1.0, overloads=overloads, faults=faults))
    run(batch.run)
    return batch


# -- the API --


async def post(session: aiohttp.ClientSession, api: LlmApi, text: str) -> tuple[aiohttp.ClientResponse, Any]:
    async with session.post(api.url, json={"prompt": text}) as response:
        return response, await response.json()


def test_the_api_allows_a_limit_of_requests_in_a_window() -> None:
    async def main() -> None:
        async with LlmApi(speed=1.0, overloads=0.0) as api, aiohttp.ClientSession() as session:
            now, began = asyncio.get_running_loop().time(), time.time()
            api._requests.extend([now - 30.0] * REQUESTS)
            first, reply = await post(session, api, "hello")
            second, _ = await post(session, api, "hello")
            assert (first.status, second.status, reply) == (429, 429, {"error": "too many requests"})
            assert api.rejected == {429: 2}
            # A number and a date, rounded up.
            assert 1 <= int(first.headers["Retry-After"]) <= 30
            date = parsedate_to_datetime(second.headers["Retry-After"]).timestamp()
            assert 0 <= date - began <= 31
            api._requests.clear()
            api._requests.extend([now - 60.0] * REQUESTS)
            assert api._wait(asyncio.get_running_loop().time(), 1) == 0.0

    asyncio.run(main())


def test_the_api_allows_a_limit_of_tokens_in_a_window() -> None:
    api = LlmApi(speed=2.0, overloads=0.0)
    api._count(100.0, 100)
    api._count(110.0, TOKENS - 100)
    assert api.peak == TOKENS
    assert api._wait(115.0, 100) == 15.0
    assert api._wait(115.0, 101) == 25.0
    assert api._wait(130.0, 100) == 0.0
    assert api._in_window == TOKENS - 100
    assert count_tokens("one two three") == 4


# -- the batch --


def test_it_comes_close_to_the_limits_and_gets_no_429() -> None:
    batch = asked(prompts=1_200)

    assert len(batch.answers) == 1_198
    assert batch.api.rejected[429] == 0
    assert batch.api.peak <= TOKENS
    overall, without_overloads = batch.shares()
    assert 0.95 <= overall == without_overloads <= 1.0
    assert batch.used == batch.api.tokens
    assert [letter.job.number for letter in batch.letters] == [500, 1_000]
    assert {letter.error_type.rpartition(".")[2] for letter in batch.letters} == {"Refused"}


def test_with_short_prompts_the_limit_of_requests_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Options, "jobs", lambda self: (Prompt(number, "short") for number in range(self.prompts)))
    batch = asked(prompts=1_200)

    assert len(batch.answers) == 1_200
    assert batch.api.rejected[429] == 0
    assert 0.95 <= batch.api.allowed / (REQUESTS * batch.seconds / batch.api.window) <= 1.0


@pytest.mark.parametrize("asks", [1, 2])
def test_a_429_pauses_the_pool_for_as_long_as_the_api_says(asks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = LlmApi._wait
    monkeypatch.setattr(
        LlmApi, "_wait", lambda self, now, tokens: 0.5 if self.rejected[429] < asks else wait(self, now, tokens)
    )
    pauses: list[float] = []
    advised = RetryAfter.from_header

    def from_header(value: str | None, *, pause: bool) -> RetryAfter:
        advice = advised(value, pause=pause)
        pauses.append(advice.seconds)
        assert advice.pause
        return advice

    monkeypatch.setattr(RetryAfter, "from_header", from_header)
    batch = asked(prompts=20)

    assert len(batch.answers) == 20
    assert batch.retries == {"TooManyRequests": asks}
    assert batch.api.rejected == {429: asks}
    assert all(0.0 <= seconds <= 2.0 for seconds in pauses)
    assert max(pauses) > 0.0
    assert len(batch.letters) == 0


def test_a_client_that_asks_for_too_much_gets_429s_and_loses_nothing() -> None:
    batch = asked(prompts=499, share=2.0, workers=100)

    assert batch.api.rejected[429] > 0
    assert batch.retries["TooManyRequests"] == batch.api.rejected[429]
    assert len(batch.answers) == 499
    assert len(batch.letters) == 0
    assert batch.api.peak <= TOKENS + 100 * 70  # answers of prompts that were allowed count afterwards


def test_an_overload_opens_the_breaker_and_costs_no_prompt() -> None:
    batch = asked(prompts=400, overloads=15.0)

    assert batch.pool.stats.breaker_openings > 0
    assert batch.seconds_open > 0.0
    assert batch.retries == {"Overloaded": batch.api.rejected[529]}
    assert len(batch.answers) == 400
    assert len(batch.letters) == 0


def test_failed_attempts_are_retried_and_their_tokens_count() -> None:
    batch = asked(prompts=300, faults=0.04)

    assert len(batch.answers) == 300
    assert set(batch.retries) == {"JobTimeout", "ServerError", "BadAnswer"}
    assert batch.unreported == batch.retries["JobTimeout"]
    assert batch.used_in_vain > 0
    assert batch.used <= batch.api.tokens  # those of a timeout are not reported
    answered = sum(len(text.split()) for text in batch.answers.values())
    prompts = sum(count_tokens(prompt.text) for prompt in batch.options.jobs())
    assert batch.used - batch.used_in_vain == answered + prompts


def test_the_estimate_is_close_to_what_is_used() -> None:
    batch = asked(prompts=300)
    estimate = sum(map(tokens_of, batch.options.jobs()))
    assert math.isclose(estimate, batch.used, rel_tol=0.1)


def test_with_a_journal_it_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "answers.db"
    first = asked(prompts=100, journal=file, max_tokens=5_000)
    assert first.stopped == f"{first.used:,} tokens were used, of at most 5,000"
    assert 0 < len(first.answers) < 100

    second = asked(prompts=100, journal=file)
    assert len(second.answers) == 100
    assert second.earlier >= len(first.answers)
    assert second.api.allowed == 100 - second.earlier
    assert first.answers.items() <= second.answers.items()
    assert f"  {second.earlier} of them in an earlier run, according to {file}" in list(second.report())


def test_a_deadline_stops_it(capsys: pytest.CaptureFixture[str]) -> None:
    batch = asked(prompts=100_000, deadline=30.0)

    assert 0 < len(batch.answers) < 100_000
    assert batch.sum_up() == 1
    assert re.search(r"^llm_batch: error: .* deadline of 30 s$", capsys.readouterr().err, re.M)


def test_replies_say_what_the_pool_should_do() -> None:
    class Response:
        def __init__(self, status: int) -> None:
            self.status = status
            self.headers = {"Retry-After": "7"}

    with pytest.raises(RetryAfter) as advice:
        check(Response(429), {"error": "no"})  # type: ignore[arg-type]  # all that is read
    assert (advice.value.seconds, advice.value.pause) == (7.0, True)
    assert isinstance(advice.value.__cause__, TooManyRequests)
    with pytest.raises(Overloaded, match="no"):
        check(Response(529), {"error": "no"})  # type: ignore[arg-type]


# -- the command --


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompts", "0"], "argument --prompts: must be an integer from 1 to 1000000, got '0'"),
        (["--speed", "fast"], "argument --speed: must be a number > 0 and <= 1000, got 'fast'"),
        (["--share", "0"], "argument --share: must be a number > 0.05 and <= 10, got '0'"),
        (["--share", "0.01"], "argument --share: must be a number > 0.05 and <= 10, got '0.01'"),
        (["--workers", "-1"], "argument --workers: must be an integer from 1 to 1000, got '-1'"),
        (["--deadline", "0"], "argument --deadline: must be a number > 0 and <= 86400, got '0'"),
        (["--max-tokens", "1e6"], "argument --max-tokens: must be an integer from 1 to 999999999, got '1e6'"),
        (["why?"], "unrecognized arguments: why?"),
    ],
)
def test_wrong_options_are_answered_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        llm_batch.main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err == f"llm_batch: error: {sentence} (see --help)\n"


def test_a_second_ctrl_c_cancels() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--speed", "0.5"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("llm: ")
    process.send_signal(signal.SIGINT)
    assert "SIGINT: draining" in process.stderr.readline()
    time.sleep(0.6)  # sooner, it would count as the same
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert "SIGINT: cancelling" in errors
    assert re.search(r"^Interrupted: \d+ of 2,000 prompts were answered\.$", errors, re.M)


def test_a_file_that_is_not_a_journal_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database")
    assert llm_batch.main(["--prompts", "10", "--journal", str(file)]) == 1
    assert f"llm_batch: error: {file} is not a journal" in capsys.readouterr().err
    assert file.read_text() == "not a database"


def test_the_command_reports() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", *COMMAND[1:], "--prompts", "50", "--speed", "60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )

    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"50 of 50 prompts answered in \d+\.\d s", lines[0])
    assert re.fullmatch(r"requests: \d+ allowed, 0 rejected with 429, \d+ with 529", lines[1])
    assert re.match(r"tokens: [\d,]+ used, \d+\.\d% of the limit: ", lines[2])
    assert re.search(r"^llm: 50 done in ", done.stderr, re.M)


@pytest.mark.parametrize(("missing", "status"), [("aiohttp", 2), ("rich", 0)])
def test_a_missing_package_is_told_in_a_sentence(missing: str, status: int) -> None:
    program = (
        f"import sys; sys.modules['{missing}'] = None; "
        "from examples import llm_batch; sys.exit(llm_batch.main(['--prompts', '5', '--speed', '60']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=False
    )

    assert done.returncode == status
    if missing == "rich":
        assert re.fullmatch(r"No progress is shown: .*asyncpool-toolkit\[progress\].*\n", done.stderr)
    else:
        assert done.stderr.startswith("llm_batch: error: the package 'aiohttp' is not installed; to install")


def test_after_ctrl_c_it_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = ["--speed", "60", "--journal", str(tmp_path / "answers.db")]
    process = subprocess.Popen(
        [*COMMAND, "--prompts", "100000", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if re.match(r"llm: [\d,]+/100,000 ", line):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert "SIGINT: draining" in errors
    end = re.search(
        r"^Interrupted: ([\d,]+) of 100,000 prompts were answered; run the same command again to continue\.$",
        errors,
        re.M,
    )
    assert end is not None
    done = int(end[1].replace(",", ""))
    assert done > 0

    more = subprocess.run(
        [*COMMAND, "--prompts", str(done), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )
    assert more.returncode == 0
    assert "of them in an earlier run, according to" in more.stdout
