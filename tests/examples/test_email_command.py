"""`python -m examples.email_campaign`, as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from examples.email_campaign import command
from tests.examples.email_parts import make_database, marks, query
from tests.markdown import sample, without_figures

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.email_campaign"]
GIVE_UP = 60.0
KILLS = int(os.environ.get("EMAIL_KILLS", "3"))

Start = Callable[..., "subprocess.Popen[str]"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    arguments = tuple(map(str, arguments))
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=False
    )


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command, to be read line by line; it is killed at the end if the test has not seen its end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Server:
    """A debug server in a process that outlives the campaigns, and the log of what it has accepted."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        log.touch()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.email_campaign.server", "--log", str(log), *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def accepted(self) -> Counter[str]:
        return Counter(self.log.read_text().split())

    def wait_for(self, mails: int) -> None:
        deadline = time.monotonic() + GIVE_UP
        while self.accepted().total() < mails:
            assert time.monotonic() < deadline
            time.sleep(0.002)


@contextmanager
def server(log: Path, *arguments: str) -> Iterator[Server]:
    running = Server(log, *arguments)
    try:
        yield running
    finally:
        running.process.communicate()  # closes its standard input, which ends it
        assert running.process.returncode == 0


# -- output --


def test_the_demo_makes_users_sends_to_them_and_tells_the_figures(tmp_path: Path) -> None:
    database = tmp_path / "users.db"
    done = run(
        "--db", database, "--users", "400", "--limit", "100", "--latency", "0-10", "--faults", "550=0.05,421=0.05"
    )

    assert done.returncode == 0  # mailboxes are missing on purpose
    lines = done.stdout.splitlines()
    sent = sum(mark == "sent" for mark in marks(database).values())
    assert lines[0] == f"Created {database} with 400 users"
    assert re.fullmatch(r"Debug server on port \d+: 0-10 ms per mail, faults 550=0.05,421=0.05", lines[1])
    assert lines[2] == "Campaign we-miss-you: sending 100 mails over 10 connections"
    assert lines[3:6] == ["Total processed: 100", f"Sent: {sent}", f"Failed: {100 - sent} ({100 - sent} x 550)"]
    assert re.fullmatch(r"Retries: [1-9]\d*", lines[6])
    assert re.fullmatch(r"Total time: \d+\.\d\ds", lines[7])
    assert re.fullmatch(r"Rate: \d+\.\d mails/s", lines[8])
    assert re.fullmatch(r"Latency: p50 \d+ ms, p95 \d+ ms, p99 \d+ ms", lines[9])
    letters = os.path.relpath(f"{database}.dead-letters.jsonl")
    assert lines[10] == f"Dead letters: {letters} (to send them again: --replay FILE)"
    assert lines[11] == "All failures are expected: some mailboxes are missing on the debug server on purpose."
    assert len(lines) == 12
    printed = {without_figures(line.replace(letters, "email-campaign.db.dead-letters.jsonl")) for line in lines}
    page = ROOT / "examples" / "email_campaign" / "README.md"
    printed.add(without_figures(done.stderr.rstrip()))  # how far it got
    assert set(sample(page, "make campaign")) - printed == set()

    replay = run("--db", database, "--replay", f"{database}.dead-letters.jsonl", "--faults", "0", "--latency", "0")
    assert replay.returncode == 0
    assert f"Sent: {100 - sent}\n" in replay.stdout
    assert set(marks(database).values()) == {"sent"}


def test_a_file_without_letters_of_the_campaign_is_told_in_a_sentence(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=1)
    done = run("--db", database, "--replay", database)

    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("email_campaign: error: ")]
    assert errors == [f"email_campaign: error: {database} has no dead letters of the campaign we-miss-you"]
    assert marks(database) == {}


def test_what_is_no_database_is_told_in_a_sentence_and_gets_no_lock_beside_it(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough to look at" * 100)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (text, folder):
        done = run("--db", path, "--smtp", "127.0.0.1:1")
        assert done.returncode == 2
        assert done.stderr.startswith(f"email_campaign: error: the database {path} cannot be used: ")
        assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "notes.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_what_cannot_be_printed_ends_in_a_sentence(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=3)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--db", str(database), "--faults", "0"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=GIVE_UP,
            check=False,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_real_server_gets_no_mails_to_made_up_users_by_accident(tmp_path: Path) -> None:
    done = run("--db", tmp_path / "users.db", "--smtp", "127.0.0.1:1")

    assert done.returncode == 2
    assert f"there is no database {tmp_path}/users.db; --users N creates one, with N made-up users" in done.stderr
    assert done.stderr.count("\n") == 1


def test_there_are_no_more_connections_than_mails(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=3)
    done = run("--db", database, "--workers", "50", "--limit", "1", "--latency", "0", "--faults", "0")

    assert done.returncode == 0
    assert "sending 1 mail over 1 connection\n" in done.stdout


def test_progress_is_told_while_mails_are_sent(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=4)
    done = run("--db", database, "--workers", "1", "--latency", "0", "--faults", "0")

    assert done.returncode == 0
    assert re.fullmatch(r"we-miss-you: 4 done in [\d.]+ s, [\d.]+/s\n", done.stderr)


# -- continuing after an interruption --


def test_ctrl_c_finishes_what_is_under_way_and_the_next_run_does_the_rest(tmp_path: Path, start: Start) -> None:
    database = make_database(tmp_path / "users.db", inactive=60)
    with server(tmp_path / "log", "--latency", "50") as relay:
        process = start("--db", database, "--smtp", relay.address, "--workers", "5")
        relay.wait_for(10)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=GIVE_UP)

        assert process.returncode == 130
        assert "Stopping: finishing the mails in progress" in output
        assert "Unfinished" not in output
        left = 60 - len(marks(database))
        assert f"Interrupted: {left} users are left; run the same command again to continue." in output
        assert 0 < left < 60
        assert run("--db", database, "--smtp", relay.address).returncode == 0

    assert len(relay.accepted()) == 60
    assert set(relay.accepted().values()) == {1}


def test_ctrl_c_twice_cancels_and_tells_what_was_cut_off(tmp_path: Path, start: Start) -> None:
    database = make_database(tmp_path / "users.db", inactive=20)
    with server(tmp_path / "log", "--faults", "stall=1") as relay:
        process = start("--db", database, "--smtp", relay.address, "--workers", "5")
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Campaign"):
                process.send_signal(signal.SIGINT)
            if line.startswith("Stopping"):
                time.sleep(0.5)  # before that, it is not a second signal
                process.send_signal(signal.SIGINT)
                break
        output = process.stdout.read()
        process.wait(timeout=GIVE_UP)

    assert process.returncode == 130
    assert "Interrupted: 20 users are left" in output
    assert "Traceback" not in output
    assert marks(database) == {}


class Terminal:
    """The command, on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", "CI": ""},
        )
        os.close(terminal)
        self.shown = b""

    def read_until(self, text: bytes) -> None:
        while text not in self.shown and (chunk := self._read()):
            self.shown += chunk
        assert text in self.shown

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def read_rest(self) -> int:
        """Read until the command ends, and return its exit status."""
        while chunk := self._read():
            self.shown += chunk
        os.close(self._master)
        return self.process.wait(GIVE_UP)

    def _read(self) -> bytes:
        try:
            return os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return b""


def test_on_a_terminal_a_bar_shows_how_far_it_is(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=30)
    terminal = Terminal("--db", str(database), "--latency", "20", "--faults", "0", "--workers", "2")

    assert terminal.read_rest() == 0
    assert b"/30" in terminal.shown
    assert b"Sent: 30\r\n" in terminal.shown


# -- a server that refuses everybody, or is gone --


def test_on_a_terminal_it_asks_whether_to_give_up_mail_after_mail(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=30)
    arguments = ("--db", str(database), "--latency", "0", "--faults", "550=1", "--max-refusals", "5")
    terminal = Terminal(*arguments)
    terminal.read_until(b"[y/N]")
    terminal.type(b"y\n")

    assert terminal.read_rest() == 0
    shown = b" ".join(terminal.shown.split())  # it is wrapped
    assert b"The mail server refused 5 mails in a row with the same reply: 550 5.1.1 no such mailbox" in shown
    assert marks(database) == dict.fromkeys(range(1, 31), "failed")


def test_without_a_terminal_it_stops_and_their_users_are_still_to_be_sent(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=30)
    done = run("--db", database, "--latency", "0", "--faults", "550=1")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "email_campaign: error: the mail server refused 20 mails in a row with the same reply: "
        "550 5.1.1 no such mailbox; their users are still to be sent (run the same command again to continue)"
    )
    assert marks(database) == {}


def test_sigterm_while_the_server_is_gone_ends_it_after_the_drain_timeout(tmp_path: Path, start: Start) -> None:
    database = make_database(tmp_path / "users.db", inactive=60)
    with server(tmp_path / "log", "--latency", "50") as relay:
        process = start("--db", database, "--smtp", relay.address, "--workers", "5", "--drain-timeout", "0.3")
        relay.wait_for(10)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("A worker cannot connect"):
            break
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=GIVE_UP / 3)

    assert process.returncode == 130
    assert "Interrupted: " in output
    assert "Traceback" not in output
    assert 0 < len(marks(database)) < 60


def test_a_server_that_stays_busy_ends_the_campaign_in_a_sentence(tmp_path: Path) -> None:
    database = make_database(tmp_path / "users.db", inactive=20)
    options = ("--latency", "0", "--faults", "451=1", "--retry-delay", "0.01", "--retry-for", "0.3")
    done = run("--db", database, *options)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "email_campaign: error: the mail server has sent no mail for 0.3 s: 451 4.3.0 try again later "
        "(run the same command again to continue)"
    )
    assert marks(database) == {}


@pytest.mark.slow
def test_kill_9_forgets_nobody_and_repeats_no_more_than_was_in_flight(tmp_path: Path, start: Start) -> None:
    random = Random(KILLS)
    inactive, workers = 200 * KILLS, 10
    database = make_database(tmp_path / "users.db", inactive=inactive)
    faults = "421=0.01,451=0.02,drop=0.01"
    with server(tmp_path / "log", "--latency", "1-10", "--faults", faults) as relay:
        arguments = ("--db", database, "--smtp", relay.address, "--workers", str(workers))
        for when in sorted(random.sample(range(1, inactive * 9 // 10), KILLS)):
            process = start(*arguments)
            relay.wait_for(when)
            time.sleep(random.uniform(0, 0.02))
            process.kill()
            process.wait()
            assert process.returncode == -signal.SIGKILL
            unknown = len(relay.accepted()) - len(marks(database))
            assert 0 <= unknown <= workers
        assert run(*arguments).returncode == 0
    accepted = relay.accepted()

    assert set(accepted) == {f"<we-miss-you.{user}@example.com>" for user in range(1, inactive + 1)}
    assert set(marks(database).values()) == {"sent"}
    repeated = accepted.total() - inactive
    print(f"{KILLS} kills, {inactive} mails, {repeated} sent twice")
    assert repeated <= workers * KILLS


# -- what makes no sense --


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--users", "0"], "argument --users: must be an integer >= 1, got '0'"),
        (["--workers", "many"], "argument --workers: must be an integer >= 1, got 'many'"),
        (["--limit", "-1"], "argument --limit: must be an integer >= 1, got '-1'"),
        (["--rate", "0"], "argument --rate: must be a number > 0, got '0'"),
        (["--timeout", "nan"], "argument --timeout: must be a number > 0, got 'nan'"),
        (["--smtp", "localhost"], "argument --smtp: must be HOST:PORT, got 'localhost'"),
        (["--smtp", "h:70000"], "argument --smtp: must be HOST:PORT, got 'h:70000'"),
        (["--latency", "100-20"], "argument --latency: must be MIN-MAX in milliseconds, such as 20-100"),
        (["--faults", "2"], "argument --faults: must be a share from 0 to 1, or KIND=SHARE,..."),
        (["--from", "nobody"], "argument --from: 'nobody' is not a valid address: "),
        (["--subject", "two\nlines"], "the subject must be one line of printable characters"),
        (["--template", "missing.txt"], "missing.txt cannot be read: "),
        (["--unsubscribe", "http://example.com"], "the URL to unsubscribe must start with https: or mailto:"),
        (["--retry-for", "-1"], "argument --retry-for: must be a number > 0, got '-1'"),
        (["--max-refusals", "0"], "argument --max-refusals: must be an integer >= 1, got '0'"),
        (["--tls", "ssl"], "argument --tls: invalid choice: 'ssl'"),
        (["--smtp", "mx:25", "--ca", "missing.pem"], "the certificates in missing.pem cannot be read: "),
        (["--smtp", "mx:25", "--username", "me"], "a login needs a password: set SMTP_PASSWORD, or use"),
        (["--smtp", "mx:25", "--username", "me", "--password-file", "missing"], "missing cannot be read: "),
        (["--campaign", "a b"], "argument --campaign: the name must consist of letters, digits"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--db", str(tmp_path / "users.db"), *arguments])

    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"email_campaign: error: {sentence}")
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_relay_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with server(tmp_path / "log") as relay:
        pass
    done = run("--db", make_database(tmp_path / "users.db", inactive=3), "--smtp", relay.address)

    assert done.returncode == 1
    assert done.stderr.startswith(f"email_campaign: error: the mail server {relay.address} cannot be reached: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("broken", ["garbage", "folder", "missing folder", "no users", "no letters", "read-only"])
def test_files_that_cannot_be_used_are_told_in_a_sentence(tmp_path: Path, broken: str) -> None:
    database = tmp_path / "users.db"
    more: list[str | Path] = []
    if broken == "garbage":
        database.write_bytes(b"no database at all " * 100)
    elif broken == "folder":
        database.mkdir()
    elif broken == "missing folder":
        database = tmp_path / "missing" / "users.db"
    elif broken == "no users":
        query(database, "CREATE TABLE customers (id INTEGER)")
    elif broken == "no letters":
        more = ["--replay", tmp_path / "missing.jsonl"]
    elif os.geteuid() == 0:
        pytest.skip("nothing is read-only for root")
    else:
        make_database(database, inactive=3)
        database.chmod(0o400)
        tmp_path.chmod(0o500)
    done = run("--db", database, *more)

    assert done.returncode == 2
    assert done.stderr.startswith("email_campaign: error: the")
    assert done.stderr.count("\n") == 1
