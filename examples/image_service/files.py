"""Write a file whole or not at all.

The data goes to a temporary file in the same folder, to the disk, and then to its name in one step
(`os.replace`). At whatever moment the program or the machine dies, the name holds the old file, the new
one, or nothing.
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

# Temporary files carry the process that writes them and a number of its own, as container after container
# has the same process id: so that what a killed run left behind can be told from what is being written now.
_RUN = secrets.token_hex(4)
_numbers = itertools.count()
_TEMPORARY = re.compile(r"\.image-service-(\d{1,9})-([0-9a-f]{8})-\d+\.part")
_ABANDONED_AFTER = 3600.0  # seconds; a write takes milliseconds


@contextlib.contextmanager
def staged(folder: Path, data: bytes) -> Generator[Path]:
    """A temporary file in `folder` that holds `data`, on the disk: to be moved to its name inside the block.

    If it was not, it is removed at the end. Raises `OSError`.
    """
    temporary = folder / f".image-service-{os.getpid()}-{_RUN}-{next(_numbers)}.part"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # it is moved by now; or the error that brought us here is the one to tell
            temporary.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` into the file `path`, replacing what is there. Raises `OSError`."""
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
            return True  # there, os.kill(pid, 0) is not a question
        os.kill(process, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return True  # it runs, and is somebody else's
    return True
