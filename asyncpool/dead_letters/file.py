"""`DeadLetterFile`: dead letters that outlive their process, one line of JSON each.

What a letter is, is `letter.py`; how stores are watched and replayed, `store.py`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar, cast

from anyio import to_thread

from asyncpool.dead_letters.letter import DeadLetter, safe_text
from asyncpool.dead_letters.store import BATCH, DeadLetterStore, Submitter

__all__ = ["DeadLetterFile"]

_log = logging.getLogger("asyncpool")

JobT = TypeVar("JobT")

_BATCH_BYTES = 1 << 20

_Id: TypeAlias = tuple[str, int]  # which process wrote the letter, and the how many'th of that one it is


def _as_it_is(value: Any) -> Any:
    return value


class DeadLetterFile(DeadLetterStore[JobT]):
    """Keeps dead letters in a file, to be opened again tomorrow.

        letters = DeadLetterFile("failed.jsonl", encode=asdict, decode=lambda fields: Order(**fields))
        async with WorkerPool(ship, workers=20, dead_letters=letters) as pool:
            await letters.replay(pool)          # what failed yesterday

    One letter is one line of JSON in UTF-8, so that `tail -f`, `grep` and `jq` work. Lines may be deleted by hand while
    nobody uses the file. A job comes back as JSON tells it: without `encode` and `decode` a tuple comes back as a list,
    and the keys of a dict as strings.

    **What a crash costs.** `record` writes its line before the outcome of the job is delivered, at once and on the
    loop (some 10 us on a local disk): a letter that waited in memory for a thread would be lost by `kill -9`. It does
    not wait for the disk itself (no fsync): the letter survives the death of the process, not always that of the
    machine. A line that is torn by a crash or a full disk costs one letter: the next append begins a line of its own.
    A replayed job is the pool's again as soon as that has accepted it, and goes with it like any other.

    **What cannot be read** is skipped, counted in `skipped`, and logged with its line number, the 1st, 2nd, 4th, 8th
    ... time. It is never deleted.

    **What cannot be written.** If `encode` or JSON refuse a job, its letter is kept with `repr(job)` in its place, and
    the error logged, the 1st, 2nd, 4th, 8th ... time. Nobody can replay such a letter: `unreplayable()` lists them.

    **Who else may use it.** No file is held open, so it may be renamed at any time, and the next letter begins a new
    one (but not during a replay: what that has submitted is noted where the path leads). Several processes may record
    at once. If two replay at once, both submit the same jobs.

    Args:
        path: The file. It is made with the first letter; its folder must be there.
        encode: Makes of a job something that `json` can write. Called on the loop.
        decode: Makes a job of that. Called in a thread by `replay`.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        IsADirectoryError: The path is a folder.
        TypeError: `encode` or `decode` is not callable.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encode: Callable[[JobT], Any] = _as_it_is,
        decode: Callable[[Any], JobT] = _as_it_is,
    ) -> None:
        super().__init__()
        # Absolute, for programs that change their folder; and never a link, which `compact` would replace by a file.
        self.path = Path(os.path.realpath(path))
        """The file, as an absolute path."""
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "dead letters need a file, and this is a folder", str(path))
        if not self.path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, "the folder for the dead letters is missing", str(self.path.parent))
        if not self.path.parent.is_dir():
            folder = str(self.path.parent)
            raise NotADirectoryError(errno.ENOTDIR, "dead letters need a folder, and this is none", folder)
        for name, function in (("encode", encode), ("decode", decode)):
            if not callable(function):
                raise TypeError(f"{name} must be callable, got {function!r}")
        self._encode = encode
        self._decode = decode
        self._lock = threading.Lock()  # held while the file changes: no letter goes to a file that is being replaced
        self._run = os.urandom(6).hex()
        self._recorded = 0
        self._as_text = 0
        # What replays of this object have in hand or have submitted: a mark may be younger than somebody's reading.
        self._taken = _Ids()
        # Lines that cannot be read are told once: those before this offset have been. A file that was replaced is new.
        self._told = 0
        self._told_of: object = None
        self.skipped = 0
        """How many lines were skipped because they could not be read, each counted once."""

    # -- Writing -----------------------------------------------------------------------------------------------------

    def record(self, letter: DeadLetter[JobT], /) -> None:
        """Append a letter to the file, before it returns. For the pool.

        Raises:
            OSError: The file system refused. Who watches gets the letter all the same.
        """
        self._recorded += 1
        # The process is a part of the id: after a fork, two of them count from the same number.
        fields: dict[str, Any] = {"id": f"{self._run}-{os.getpid():x}.{self._recorded}"}
        about = {
            name: getattr(letter, name) for name in ("error_type", "error", "attempts", "first_at", "last_at", "pool")
        }
        try:
            line = _line({**fields, "job": self._encode(letter.job), **about})
        except Exception as error:
            self._as_text += 1
            if self._as_text & (self._as_text - 1) == 0:
                _log.error(
                    "dead letters: a job cannot be written to %s, so it cannot be replayed (occurrence %d): %.200s",
                    self.path,
                    self._as_text,
                    safe_text(repr, letter.job),
                    exc_info=error,
                )
            line = _line({**fields, "job_repr": safe_text(repr, letter.job), **about})
        try:
            self._append(line)
        finally:
            self._show(letter)

    def _append(self, line: bytes) -> None:
        # Unbuffered and for appending: the line is one write at the end of the file, wherever others have moved that.
        with self._lock, open(self.path, "a+b", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # somebody was torn from his line
                    line = b"\n" + line
            while line:  # once, unless the disk fills up just here: then this is the way to its error
                line = line[file.write(line) :]

    # -- Reading -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[DeadLetter[JobT]]:
        """Read the letters that are in the file now, line by line, the oldest first; none if there is no file.

        Blocks for as long as the disk takes. Letters whose job could not be written are left out: `unreplayable()`.

        Raises:
            OSError: The file cannot be read.
        """
        return (kept.letter for kept in self._read() if kept.is_replayable)

    def __len__(self) -> int:
        """How many letters there are to iterate over, those that `decode` may refuse included. Reads the file.

        Raises:
            OSError: The file cannot be read.
        """
        return sum(kept.is_replayable for kept in self._read(_as_it_is))

    def unreplayable(self) -> Iterator[DeadLetter[str]]:
        """Read the letters whose job could not be written, with `repr(job)` in its place; as iterating does."""
        return (kept.letter for kept in self._read() if not kept.is_replayable)

    def __repr__(self) -> str:
        return f"<DeadLetterFile {str(self.path)!r}>"

    def _read(self, decode: Callable[[Any], Any] | None = None) -> Generator[_Kept, None, None]:
        """Read what has not left, up to where the file ends now.

        In two passes, because the marks of what was replayed come after it. The file stays open meanwhile, so that it
        is the same in both, whoever replaces it.
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
                    self._tell(offset, number, error)
                else:
                    if kept is not None:
                        yield kept

    def _kept(self, line: bytes, gone: _Ids, decode: Callable[[Any], Any]) -> _Kept | None:
        """Return the letter in a line; None if it has left, or there is none. Raises anything if it cannot be read."""
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
        if identity != self._told_of or status.st_size < self._told:
            self._told_of, self._told = identity, 0

    def _tell(self, offset: int, number: int, error: Exception) -> None:
        if offset >= self._told:
            self._told = offset + 1
            self.skipped += 1
            if self.skipped & (self.skipped - 1) == 0:
                _log.error(
                    "dead letters: %s:%d cannot be read and is skipped (occurrence %d): %.200s",
                    self.path,
                    number,
                    self.skipped,
                    safe_text(repr, error),
                )

    # -- Leaving -----------------------------------------------------------------------------------------------------

    async def replay(self, pool: Submitter[JobT], where: Callable[[DeadLetter[JobT]], bool] | None = None) -> int:
        """Submit the jobs of the letters again, the oldest first, and return how many were submitted.

        Of the letters that are there when it begins, those for which `where(letter)` is true; without it, all. A job
        that fails again comes back as a new letter, which waits for the next replay. Each waits for room in the pool.
        The file is read in a thread, a little at a time, so that memory is flat. Letters whose job could not be
        written are passed over, and their number is logged.

        Cancel-safe: a letter leaves the file once its job is accepted, by a line that says so, and not before; so it
        stays if the wait is cancelled, or the pool refuses the job. Several replays at once share the letters: none is
        submitted twice, as long as they use this one object.

        Raises:
            PoolClosed, PoolNotStarted: The pool takes no jobs, or no more; or what else its `submit` raised.
            OSError: The file cannot be read; or not written: then the last job was submitted, and its letter is there.
            Exception: What `where` raised.
        """
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
                pass  # cancelled, and the thread still reads: the file is closed when it drops its reference
        if passed_over:
            _log.warning("dead letters: %d in %s hold no job that could be replayed", passed_over, self.path)
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
        """Rewrite the file without the letters that have left. What cannot be read stays.

        The new file takes the place of the old one in one step and only when it is on the disk, with its permissions
        and its owner. No other process may use the file meanwhile: what it writes would be lost. In this process
        letters that are recorded meanwhile wait, and so does the loop: best called before the pools start.

        Raises:
            OSError: The file system refused; the file is as before.
        """
        with self._lock:
            if not self.path.exists():
                return
            import tempfile  # here, because it is slow to import, and few need it

            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with open(handle, "wb") as new, open(self.path, "rb") as old:
                    status = os.fstat(old.fileno())
                    self._recognise(status)
                    told = self._rewrite(old, new, status.st_size)
                    new.flush()
                    if sys.platform != "win32":
                        _give_to(new.fileno(), status)
                    os.fsync(new.fileno())
                    now = os.fstat(new.fileno())
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
            self._told_of, self._told = (now.st_dev, now.st_ino), told

    def _rewrite(self, old: BinaryIO, new: BinaryIO, end: int) -> int:
        """Write what has not left, and return where in it the lines end that cannot be read and have been told."""
        told = 0
        gone = _replayed(old, end)
        old.seek(0)
        for offset, _, line in _lines(old, end):
            try:
                fields = _fields(line)
                if fields is None or "replayed" in fields or _id(fields["id"]) in gone:
                    continue
            except Exception:
                pass  # it cannot be read: it stays
            new.write(line)
            if offset < self._told:
                told = new.tell()
        return told


class _Kept(NamedTuple):
    id: _Id
    letter: DeadLetter[Any]
    is_replayable: bool
    size: int  # of its line, in bytes


class _Ids:
    """A set of ids, at little more than a bit each: a million letters may have left."""

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
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair: UTF-8 has no bytes for it, but JSON has an escape
        return json.dumps(fields).encode() + b"\n"


def _fields(line: bytes) -> dict[str, Any] | None:
    if line.isspace():
        return None
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return cast("dict[str, Any]", fields)


def _id(text: Any) -> _Id:
    run, dot, number = str(text).rpartition(".")
    if not dot:
        raise ValueError(f"{text!r} is not the id of a letter")
    return run, int(number)


def _lines(file: BinaryIO, end: int) -> Iterator[tuple[int, int, bytes]]:
    """The lines that begin before an offset: each with its own offset, and its number from 1 on."""
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
                pass  # a letter that only speaks of it, or a line that cannot be read
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
