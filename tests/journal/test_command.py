"""`python -m asyncpool.journal FILE`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncpool import Failed
from asyncpool.journal.__main__ import main
from asyncpool.journal.entries import Entry, FailedJob, Key
from asyncpool.journal.file import JournalFile
from tests.journal.tools import make_journal, recorded_in


def failed(key: Key, error: Exception, now: float = 1e9) -> Entry:
    return Entry(key, FailedJob.of(key, Failed(f"input {key!r}", error, 3), now))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = JournalFile(str(tmp_path / "mails.db"), "spring", durable=False)
    file.open()
    file.record([Entry(key) for key in (*range(1200), "1", "anna", b"\x00\xff", "two\nlines")])
    file.record(
        [
            failed("bob", ConnectionError("refused")),
            failed(-5, ConnectionError("refused")),
            failed(b"x", OSError("\n!")),
        ]
    )
    file.close()
    return tmp_path / "mails.db"


def output(capsys: pytest.CaptureFixture[str], *argv: object, status: int = 0) -> tuple[str, str]:
    assert main([str(arg) for arg in argv]) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_it_says_what_is_done_what_has_failed_and_why(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, path)[0] == (
        f"{path}, version spring\n"
        "1,204 done, 3 failed\n"
        "       2 x ConnectionError: refused\n"
        "       1 x OSError: !\n"
    )  # fmt: skip


def test_it_lists_failed_jobs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, path, "--failed")[0].splitlines() == [
        "-5: ConnectionError: refused (3 attempts, last 2001-09-09 01:46:40Z)",
        "bob: ConnectionError: refused (3 attempts, last 2001-09-09 01:46:40Z)",
        "b'x': OSError: ! (3 attempts, last 2001-09-09 01:46:40Z)",
    ]


def test_it_prints_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(output(capsys, path, "--json")[0])
    jobs = report.pop("jobs")
    assert report == {"file": str(path), "version": "spring", "done": 1204, "failed": 3}
    assert [job["key"] for job in jobs] == [-5, "bob", {"hex": "78"}]
    assert jobs[1] == {
        "key": "bob",
        "job": "\"input 'bob'\"",
        "error_type": "ConnectionError",
        "error": "refused",
        "attempts": 3,
        "first_at": 1e9,
        "last_at": 1e9,
    }


@pytest.mark.parametrize(
    ("text", "forgotten"),
    [
        ("anna", ["anna"]),
        ("7", [7]),
        ("1", ["1", 1]),
        (r"b'\x00\xff'", [b"\x00\xff"]),
        (r"'two\nlines'", ["two\nlines"]),
    ],
)
def test_it_forgets_jobs(path: Path, capsys: pytest.CaptureFixture[str], text: str, forgotten: list[Any]) -> None:
    before = recorded_in(path)
    out, err = output(capsys, path, "--forget", text)
    assert before - recorded_in(path) == set(forgotten)
    assert len(out.splitlines()) == len(forgotten)
    assert err == ""


def test_it_forgets_failed_jobs_and_says_which_are_not_there(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = output(capsys, path, "--forget", "bob", "--forget", "carl", status=1)
    assert out == "forgot bob\n"
    assert err == f"error: {path} has no job with the key carl\n"
    assert [job.key for job in make_journal(path.parent, path.name).failed()] == [-5, b"x"]


def test_it_does_not_forget_while_a_run_uses_the_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = JournalFile(str(path), "spring", durable=False)
    file.open()
    try:
        err = output(capsys, path, "--forget", "bob", status=1)[1]
        assert (
            err
            == f"error: the journal {path} is in use by another run (process {os.getpid()}): wait until it has ended\n"
        )
        assert "1,204 done" in output(capsys, path)[0]  # which can be read meanwhile
    finally:
        file.close()


def test_it_says_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, tmp_path / "none.db", status=1)[1] == f"error: there is no file {tmp_path / 'none.db'}\n"
    assert output(capsys, tmp_path, status=1)[1] == f"error: there is no file {tmp_path}\n"
    text = tmp_path / "text"
    text.write_text("text " * 1000)
    assert output(capsys, text, status=1)[1].startswith(f"error: {text} is not a journal")
    assert sorted(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("argv", [[], ["a", "--failed", "--json"], ["a", "--forget"], ["a", "b"]])
def test_wrong_arguments_get_a_sentence(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert re.search(r"^python -m asyncpool.journal: error: ", capsys.readouterr().err, re.MULTILINE)


def test_many_reasons_are_cut(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = JournalFile(str(path), "spring", durable=False)
    file.open()
    file.record([failed(f"many {n}", ValueError(f"{n} " * 100)) for n in range(20)])
    file.close()
    lines = output(capsys, path)[0].splitlines()
    assert len(lines) == 13
    assert lines[-1] == "      12 x other errors"
    assert all(len(line) < 140 for line in lines[1:])


@pytest.mark.slow
def test_it_is_a_command(path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "asyncpool.journal", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "1,204 done, 3 failed" in ran.stdout
