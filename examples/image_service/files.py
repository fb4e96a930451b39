"""Write a file atomically.

The data is written to a temporary file in the same folder and synced to disk. Then `os.replace` moves the file to its
name in one step. If the program or the machine crashes at any moment, the name refers to the old file, to the new file,
or to nothing, but never to a part of a file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import time
from collections.abc import Generator
from pathlib import Path

__all__ = ["staged", "sweep", "write_whole"]

# The names of temporary files hold the process id and a random number, because containers often have the same process
# ids. This distinguishes the leftovers of a killed run from files that are being written now.
_RUN = secrets.token_hex(4)
_numbers = itertools.count()
_TEMPORARY = re.compile(r"\.image-service-(\d{1,9})-([0-9a-f]{8})-\d+\.part")
_ABANDONED_AFTER = 3600.0  # seconds; a write takes milliseconds


@contextlib.contextmanager
def staged(folder: Path, data: bytes) -> Generator[Path]:
    """Write `data` to a temporary file in `folder`, synced to disk. The block must move it to its final name.

    If it does not, the file is removed at the end. Raises `OSError`.
    """
    temporary = folder / f".image-service-{os.getpid()}-{_RUN}-{next(_numbers)}.part"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # it has been moved; or another error is being raised, which matters more
            temporary.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to the file `path`, replacing an existing file. Raises `OSError`."""
    with staged(path.parent, data) as temporary:
        os.replace(temporary, path)


def sweep(folder: Path) -> None:
    """Remove the temporary files in `folder` that a killed run left behind. Raises `OSError`."""
    for path in folder.iterdir():
        if (match := _TEMPORARY.fullmatch(path.name)) and not _in_use(path, int(match[1]), match[2]):
            path.unlink(missing_ok=True)


def _in_use(path: Path, process: int, run: str) -> bool:
    if process == os.getpid():
        return run == _RUN
    try:
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
            return False
        if os.name == "nt":
            return True  # on Windows, os.kill(pid, 0) would interrupt the process
        os.kill(process, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return True  # the process runs, and belongs to another user
    return True
