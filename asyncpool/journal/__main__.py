"""`python -m asyncpool.journal FILE`: what is done, what has failed, and why."""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from asyncpool.errors import JournalError
from asyncpool.journal.entries import FailedJob, JournalCounts, Key, check_key
from asyncpool.journal.file import JournalFile
from asyncpool.journal.reading import counts_of, failed_in, version_of

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status: 0, or 1 if the file cannot be used, or a key is not in it."""
    options = _parser().parse_args(argv)
    try:
        if not os.path.isfile(options.file):
            raise JournalError(f"there is no file {options.file}")
        if options.forget is not None:
            return _forget(options.file, options.forget)
        failed = failed_in(options.file)
        counts = counts_of(options.file)
        if options.json:
            _print_json(options.file, counts, failed)
        elif options.failed:
            _print_failed(failed)
        else:
            _print_summary(options.file, counts, failed)
    except JournalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output has enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asyncpool.journal",
        description="Show what is done of a batch, what has failed, and why. Works while a run writes the journal.",
    )
    parser.add_argument("file", metavar="FILE", help="the journal")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--failed", action="store_true", help="list the failed jobs, the oldest failure first")
    action.add_argument(
        "--forget",
        metavar="KEY",
        action="append",
        help="remove what is recorded of a job, so that the next run repeats it; several times for several jobs",
    )
    action.add_argument("--json", action="store_true", help="print counts and failed jobs as JSON")
    return parser


def _print_summary(path: str, counts: JournalCounts, failed: list[FailedJob]) -> None:
    version = version_of(path)
    print(f"{path}{f', version {version}' if version else ''}")
    print(f"{counts.done:,} done, {counts.failed:,} failed")
    reasons = Counter(f"{job.error_type}: {_line(job.error, 100)}" for job in failed)
    for reason, count in reasons.most_common(10):
        print(f"{count:>8,} x {reason}")
    if len(reasons) > 10:
        print(f"{sum(reasons.values()) - sum(count for _, count in reasons.most_common(10)):>8,} x other errors")


def _print_failed(failed: list[FailedJob]) -> None:
    for job in failed:
        attempts = f"{job.attempts} attempt{'' if job.attempts == 1 else 's'}"
        print(f"{_shown(job.key)}: {job.error_type}: {_line(job.error, 200)} ({attempts}, last {_when(job.last_at)})")


def _print_json(path: str, counts: JournalCounts, failed: list[FailedJob]) -> None:
    report = {
        "file": path,
        "version": version_of(path),
        "done": counts.done,
        "failed": counts.failed,
        "jobs": [asdict(job) | {"key": _as_json(job.key)} for job in failed],
    }
    print(json.dumps(report, indent=2))


def _forget(path: str, texts: list[str]) -> int:
    keys = [key for text in texts for key in _keys_of(text)]
    file = JournalFile(path, version_of(path) or "", durable=True)
    file.open()
    try:
        forgotten = file.forget(keys)
    finally:
        file.close()
    for key in forgotten:
        print(f"forgot {_shown(key)}")
    missing = [text for text in texts if not set(_keys_of(text)) & set(forgotten)]
    for text in missing:
        print(f"error: {path} has no job with the key {text}", file=sys.stderr)
    return 1 if missing else 0


def _keys_of(text: str) -> list[Key]:
    """Return the keys that a text can mean: the text itself, and the int, str or bytes that it is as a literal."""
    keys: list[Any] = [text]
    try:
        keys.append(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    return [key for key in keys if _is_key(key)]


def _is_key(key: object) -> bool:
    try:
        check_key(key)
    except (TypeError, ValueError):
        return False
    return True


def _shown(key: Key) -> str:
    """Return a key as `--forget` reads it, on one line."""
    return key if isinstance(key, str) and key.isprintable() else repr(key)


def _as_json(key: Key) -> str | int | dict[str, str]:
    return {"hex": key.hex()} if isinstance(key, bytes) else key


def _line(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


if __name__ == "__main__":
    sys.exit(main())
