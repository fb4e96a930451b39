"""`DeadLetterFile`: dead letters that outlive their process, one line of JSON each.

`letter.py` has the letters; `store.py` has what all stores have in common, watching and replaying.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar, cast

from anyio import to_thread

from asyncpool._checks import check_function
from asyncpool._guard import describe, safe_text
from asyncpool._logs import is_logged, log
from asyncpool.dead_letters.letter import DeadLetter
from asyncpool.dead_letters.store import BATCH, DeadLetterStore, Submitter

__all__ = ["DeadLetterFile"]

JobT = TypeVar("JobT")

_BATCH_BYTES = 1 << 20

# Words that `json` writes for numbers, though they are not JSON; and strings, which can contain them.
_NOT_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|Infinity|NaN')

_Id: TypeAlias = tuple[str, int]  # the run of the process that wrote the letter, and the letter's number in that run


def _as_it_is(value: Any) -> Any:
    return value


class DeadLetterFile(DeadLetterStore[JobT]):
    """Keeps dead letters in a file, so that a later run can replay them.

        letters = DeadLetterFile("failed.jsonl", encode=asdict, decode=lambda fields: Order(**fields))
        async with WorkerPool(ship, workers=20, dead_letters=letters) as pool:
            await letters.replay(pool)          # what failed yesterday

    One letter is one line of JSON in UTF-8, so that `tail -f`, `grep` and `jq` work. Lines can be deleted by hand while
    no process uses the file. A job is read as JSON represents it: without `encode` and `decode`, a tuple becomes a
    list, and the keys of a dict become strings. Infinite numbers are written as 1e999 and -1e999, which are valid JSON
    and are read as infinite again; JSON has no way to write NaN.

    **Crashes.** `record` writes its line on the loop, before the outcome of the job is delivered (about 10 us on a
    local disk): a letter that waited in memory for a thread would be lost by `kill -9`. It does not call fsync, so the
    letter survives a crash of the process, but not always a crash of the machine. A line that is incomplete because of
    a crash or a full disk costs one letter: the next append starts a new line. A replayed job belongs to the pool as
    soon as the pool has accepted it: a crash of the process then loses it, as any job in memory.

    **Unreadable lines** are skipped and counted in `skipped`; the 1st, 2nd, 4th, 8th ... is logged with its line
    number. They are never deleted.

    **Jobs that cannot be written.** If `encode` or `json` raises for a job, or the job has NaN in it, its letter is
    written with `repr(job)` instead, and the 1st, 2nd, 4th, 8th ... such error is logged. Such a letter cannot be
    replayed; `unreplayable()` returns them.

    **Sharing the file.** The file is not kept open, so it can be renamed at any time, and the next letter starts a new
    file. Do not rename it during a replay, which records what it has submitted in the file at the path. Several
    processes can record letters at the same time. If two processes replay at the same time, both submit the same jobs.

    Args:
        path: The file. It is created with the first letter; its folder must exist.
        encode: Converts a job to something that `json` can write. Called on the loop.
        decode: Converts that back to a job. Called in a thread by `replay`, and in the caller's by iterating.

    Raises:
        FileNotFoundError, NotADirectoryError: The folder does not exist, or is not a folder.
        IsADirectoryError: The path is a folder.
        TypeError: `encode` or `decode` is not callable, or is an async function.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encode: Callable[[JobT], Any] = _as_it_is,
        decode: Callable[[Any], JobT] = _as_it_is,
    ) -> None:
        super().__init__()
        # Absolute, because a program can change its working directory. Without links, which `compact` would replace.
        self.path = Path(os.path.realpath(path))
        """The file, as an absolute path."""
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "path must be a file for dead letters, got a folder", str(path))
        if not self.path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, "the folder for the dead letters must exist", str(self.path.parent))
        if not self.path.parent.is_dir():
            folder = str(self.path.parent)
            raise NotADirectoryError(errno.ENOTDIR, "the parent of the dead letters' path must be a folder", folder)
        for name, function in (("encode", encode), ("decode", decode)):
            check_function(name, function)
        self._encode = encode
        self._decode = decode
        self._lock = threading.Lock()  # held while the file changes: no letter is written to a file being replaced
        self._run = os.urandom(6).hex()
        self._recorded = 0
        self._as_text = 0
        # What replays of this object have reserved or submitted. The marks in the file are not enough: a replay can
        # have read the file before another appended its mark.
        self._taken = _Ids()
        # Each unreadable line is reported once: those before this offset are. It applies to one file only, by identity.
        self._reported_until = 0
        self._reported_file: object = None
        self.skipped = 0
        """How many lines were skipped because they could not be read; each line is counted once."""

    # -- Writing -----------------------------------------------------------------------------------------------------

    def record(self, letter: DeadLetter[JobT], /) -> None:
        """Append a letter to the file. It is written when this returns, and survives a crash of the process.

        Pools call this for each job that failed permanently. Blocks for one write to the file.

        Raises:
            OSError: The file cannot be written. Watches receive the letter nevertheless.
        """
        self._recorded += 1
        # The process is part of the id: after a fork, two processes count from the same number.
        fields: dict[str, Any] = {"id": f"{self._run}-{os.getpid():x}.{self._recorded}"}
        about = {
            name: getattr(letter, name) for name in ("error_type", "error", "attempts", "first_at", "last_at", "pool")
        }
        try:
            line = _line({**fields, "job": self._encode(letter.job), **about})
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._as_text += 1
            if is_logged(self._as_text):
                log.error(
                    "dead letters: a job cannot be written to %s, so it cannot be replayed (occurrence %d): %.200r",
                    str(self.path),
                    self._as_text,
                    letter.job,
                    exc_info=error,
                )
            line = _line({**fields, "job_repr": safe_text(repr, letter.job), **about})
        try:
            self._append(line)
        finally:
            self._notify_watches(letter)

    def _append(self, line: bytes) -> None:
        # Unbuffered append: the line is one write at the end of the file, even if other processes append too.
        with self._lock, open(self.path, "a+b", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the last line is incomplete: its writer crashed, or the disk was full
                    line = b"\n" + line
            while line:  # one iteration, unless the disk becomes full: then the next write raises the error
                line = line[file.write(line) :]

    # -- Reading -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[DeadLetter[JobT]]:
        """Read the letters that are in the file now, line by line, the oldest first; none if the file does not exist.

        Blocks while it reads from the disk. Skips letters whose job could not be written: see `unreplayable()`.

        Raises:
            OSError: The file cannot be read.
        """
        return (kept.letter for kept in self._read() if kept.is_replayable)

    def __len__(self) -> int:
        """Return the number of letters to iterate over, without calling `decode`. Reads the file, and blocks meanwhile.

        Raises:
            OSError: The file cannot be read.
        """
        return sum(kept.is_replayable for kept in self._read(_as_it_is))

    def unreplayable(self) -> Iterator[DeadLetter[str]]:
        """Read the letters whose job could not be written, with `repr(job)` as their job. Blocks as iterating does.

        Raises:
            OSError: The file cannot be read.
        """
        return (kept.letter for kept in self._read() if not kept.is_replayable)

    def __repr__(self) -> str:
        return f"<DeadLetterFile {str(self.path)!r}>"

    def _read(self, decode: Callable[[Any], Any] | None = None) -> Generator[_Kept, None, None]:
        """Read the letters that were not replayed, up to the current end of the file.

        In two passes, because the mark of a replayed letter is after the letter. The file stays open between them, so
        that both read the same file even if it is replaced meanwhile.
        """
        try:
            file = open(self.path, "rb")  # noqa: SIM115  # it is closed below
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            self._recognise(status)
            gone = _replayed(file, status.st_size)
            file.seek(0)
            for offset, number, line in _lines(file, status.st_size):
                try:
                    kept = self._kept(line, gone, decode or self._decode)
                except Exception as error:
                    self._report_unreadable(offset, number, error)
                else:
                    if kept is not None:
                        yield kept

    def _kept(self, line: bytes, gone: _Ids, decode: Callable[[Any], Any]) -> _Kept | None:
        """Return the letter in a line; None if it was replayed, or the line is not a letter. Raises if unreadable."""
        fields = _fields(line)
        if fields is None or "replayed" in fields or (id := _id(fields["id"])) in gone:
            return None
        is_replayable = "job" in fields
        letter = DeadLetter(
            job=decode(fields["job"]) if is_replayable else fields["job_repr"],
            error_type=str(fields["error_type"]),
            error=str(fields["error"]),
            attempts=int(fields["attempts"]),
            first_at=float(fields["first_at"]),
            last_at=float(fields["last_at"]),
            pool=str(fields["pool"]),
        )
        return _Kept(id, letter, is_replayable, len(line))

    def _recognise(self, status: os.stat_result) -> None:
        identity = status.st_dev, status.st_ino
        if identity != self._reported_file or status.st_size < self._reported_until:
            self._reported_file, self._reported_until = identity, 0

    def _report_unreadable(self, offset: int, number: int, error: Exception) -> None:
        if offset >= self._reported_until:
            self._reported_until = offset + 1
            self.skipped += 1
            if is_logged(self.skipped):
                log.error(
                    "dead letters: %s:%d cannot be read and is skipped (occurrence %d): %.200r",
                    str(self.path),
                    number,
                    self.skipped,
                    error,
                )

    # -- Replaying and compacting ------------------------------------------------------------------------------------

    async def replay(self, pool: Submitter[JobT], where: Callable[[DeadLetter[JobT]], bool] | None = None) -> int:
        """Submit the jobs of the letters again, the oldest first, and return how many were submitted.

        It takes the letters that are in the file when it begins, and of those only the ones for which `where(letter)`
        is true; without `where`, all. It waits for room in the pool for each job, but not for the jobs themselves. A
        job that fails again is recorded as a new letter, which is left for the next replay. The file is read in a
        thread, in small batches, so that memory stays constant. Letters whose job could not be written are skipped, and
        their number is logged.

        Cancel-safe: when the pool has accepted a job, and not before, its letter is marked as replayed by a line in the
        file. So the letter stays if the wait is cancelled or the pool rejects the job. Concurrent replays of this
        object share the letters: none is submitted twice.

        Raises:
            PoolClosed, PoolNotStarted: The pool does not accept jobs.
            OSError: The file cannot be read; or it cannot be written: then the last job was submitted, but its letter
                is still in the file.
            TypeError: `where` is not callable, or is an async function.
            Exception: What else `submit` or `where` raised.
        """
        if where is not None:
            check_function("where", where)  # a coroutine is always true, so an async function would select all letters
        count = passed_over = 0
        letters = self._read()
        try:
            while batch := await to_thread.run_sync(_batch, letters):
                replayable = [(kept.id, kept.letter) for kept in batch if kept.is_replayable]
                passed_over += len(batch) - len(replayable)
                count += await self._submit_again(pool, where, replayable)
        finally:
            try:
                letters.close()
            except ValueError:
                pass  # cancelled while the thread is reading: the file is closed when the thread drops its reference
        if passed_over:
            log.warning(
                "dead letters: %d in %s cannot be replayed, because the job could not be written",
                passed_over,
                str(self.path),
            )
        return count

    def _claim(self, key: _Id) -> bool:
        if key in self._taken:
            return False
        self._taken.add(key)
        return True

    def _release(self, key: _Id, accepted: bool) -> None:
        if accepted:
            self._append(_line({"replayed": f"{key[0]}.{key[1]}"}))
        else:
            self._taken.discard(key)

    def compact(self) -> None:
        """Rewrite the file without the letters that were replayed. Unreadable lines stay.

        The new file replaces the old one atomically, after an fsync, with the same permissions and owner. No other
        process may use the file meanwhile, because what it writes would be lost. In this process, `record` waits until
        the file is rewritten, and blocks the loop: call this before the pools start.

        Raises:
            OSError: The file cannot be read or written; it is then unchanged.
        """
        with self._lock:
            if not self.path.exists():
                return
            import tempfile  # here, because it is slow to import and rarely needed

            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with open(handle, "wb") as new, open(self.path, "rb") as old:
                    status = os.fstat(old.fileno())
                    self._recognise(status)
                    reported = self._rewrite(old, new, status.st_size)
                    new.flush()
                    if sys.platform != "win32":
                        _give_to(new.fileno(), status)
                    os.fsync(new.fileno())
                    now = os.fstat(new.fileno())
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
            self._reported_file, self._reported_until = (now.st_dev, now.st_ino), reported

    def _rewrite(self, old: BinaryIO, new: BinaryIO, end: int) -> int:
        """Write what was not replayed, and return the offset in it up to which unreadable lines are reported."""
        reported = 0
        gone = _replayed(old, end)
        old.seek(0)
        for offset, _, line in _lines(old, end):
            try:
                fields = _fields(line)
                if fields is None or "replayed" in fields or _id(fields["id"]) in gone:
                    continue
            except Exception:
                pass  # an unreadable line stays
            new.write(line)
            if offset < self._reported_until:
                reported = new.tell()
        return reported


class _Kept(NamedTuple):
    id: _Id
    letter: DeadLetter[Any]
    is_replayable: bool
    size: int  # of its line, in bytes


class _Ids:
    """A set of ids that takes little more than a bit per id: there can be a million replayed letters."""

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[_Id, int] = {}

    def __contains__(self, id: _Id) -> bool:
        run, number = id
        return bool(self._pages.get((run, number >> 10), 0) >> (number & 1023) & 1)

    def add(self, id: _Id) -> None:
        run, number = id
        page = run, number >> 10
        self._pages[page] = self._pages.get(page, 0) | 1 << (number & 1023)

    def discard(self, id: _Id) -> None:
        if id in self:
            run, number = id
            self._pages[run, number >> 10] ^= 1 << (number & 1023)


def _line(fields: dict[str, Any]) -> bytes:
    try:
        return _json(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair: UTF-8 has no bytes for it, but JSON has an escape
        return _json(fields, ensure_ascii=True).encode() + b"\n"


def _json(fields: dict[str, Any], *, ensure_ascii: bool) -> str:
    """Return strict JSON, which other programs can read, too."""
    try:
        return json.dumps(fields, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:  # an infinite number, NaN, or a reference cycle
        return _NOT_JSON.sub(_replace_not_json, json.dumps(fields, ensure_ascii=ensure_ascii))


def _replace_not_json(found: re.Match[str]) -> str:
    if found[0] == "NaN":
        raise ValueError("JSON cannot represent NaN: pass encode= to write another value for it")
    return "1e999" if found[0] == "Infinity" else found[0]  # a valid number, and read as infinite


def _fields(line: bytes) -> dict[str, Any] | None:
    if line.isspace():
        return None
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"a line must be a JSON object, got {describe(fields)}")
    return cast("dict[str, Any]", fields)


def _id(text: Any) -> _Id:
    run, dot, number = str(text).rpartition(".")
    if not dot:
        raise ValueError(f"the id of a letter must have a dot before its number, got {describe(text)}")
    return run, int(number)


def _lines(file: BinaryIO, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the lines that begin before offset `end`, each with its own offset and its number, counted from 1."""
    offset = 0
    for number, line in enumerate(file, 1):
        if offset >= end:
            return
        yield offset, number, line
        offset += len(line)


def _replayed(file: BinaryIO, end: int) -> _Ids:
    gone = _Ids()
    for _, _, line in _lines(file, end):
        if b'"replayed"' in line:
            try:
                gone.add(_id((_fields(line) or {})["replayed"]))
            except Exception:
                pass  # a letter whose text contains the word, or an unreadable line
    return gone


def _batch(letters: Iterator[_Kept]) -> list[_Kept]:
    batch: list[_Kept] = []
    size = 0
    while len(batch) < BATCH and size < _BATCH_BYTES and (kept := next(letters, None)) is not None:
        batch.append(kept)
        size += kept.size
    return batch


def _give_to(handle: int, before: os.stat_result) -> None:
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode))
