"""The folder of thumbnails: choose the file of each image, find existing thumbnails, and write new ones.

`https://a/photo.jpg` is written as `photo.jpg`. If that name is taken, `https://b/photo.jpg` is written as
`photo-0123456789ab.jpg`, with a hash of its source. Each file contains a stamp (as the JPEG comment) with its source
and its options. So a rerun recognizes its own files, whatever their names, and never replaces a file with another
source.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from threading import Lock

from PIL import Image

from examples.image_service.errors import OutputError
from examples.image_service.files import staged, sweep

__all__ = ["OutputFolder", "Stamp", "Whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The source and the options of a thumbnail. Equal stamps mean equal thumbnails.

    The source is stored as a hash, because URLs can contain passwords and thumbnails are often published.
    """

    source: str
    revision: str
    size: tuple[int, int]
    quality: int

    @classmethod
    def of(cls, origin: str, revision: str, size: tuple[int, int], quality: int) -> Stamp:
        """Return the stamp of the thumbnail of the photo at `origin`."""
        return cls(source=_hash(origin), revision=_hash(revision), size=size, quality=quality)

    def encode(self) -> bytes:
        """Return the stamp as text, for the comment of a JPEG."""
        width, height = self.size
        return (
            f"image_service: source {self.source}, revision {self.revision}, "
            f"size {width}x{height}, quality {self.quality}"
        ).encode()

    @classmethod
    def decode(cls, comment: bytes) -> Stamp | None:
        """Parse the result of `encode`; return None for any other comment."""
        match = _STAMP.fullmatch(comment)
        if match is None:
            return None
        source, revision, width, height, quality = (part.decode() for part in match.groups())
        return cls(source=source, revision=revision, size=(int(width), int(height)), quality=int(quality))


_STAMP = re.compile(rb"image_service: source ([0-9a-f]{16}), revision ([0-9a-f]{16}), size (\d+)x(\d+), quality (\d+)")


def _hash(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """An existing thumbnail that is complete and up to date."""

    path: Path
    width: int
    height: int
    bytes: int


class _Taken(Enum):
    """The state of a possible file name that does not hold a complete and current thumbnail."""

    NOTHING = "nothing"
    OURS = "a thumbnail of the same photo that must be made again"
    FOREIGN = "a file of another photo or another program"


class OutputFolder:
    """A folder of thumbnails. Its methods read and write files, so call them in threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._naming = Lock()

    def prepare(self) -> None:
        """Create the folder, check that it is writable, and remove the temporary files of a killed run.

        Raises:
            OutputError: The folder cannot be created or written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file, not a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sweep(self.path)
            with staged(self.path, b""):
                pass  # the folder is writable
        except OSError as error:
            raise OutputError(f"cannot write to the folder {self.path}: {_reason(error)}") from error

    def find(self, stem: str, stamp: Stamp) -> Whole | None:
        """Return the thumbnail with this stamp if it exists and is complete.

        A complete file has a readable header with this exact stamp, fits the box, and ends with the end marker of a
        JPEG. Since this program writes files atomically, this is enough to detect files that others have truncated.
        """
        for path in self._names(stem, stamp):
            if isinstance(what := _look(path, stamp), Whole):
                return what
        return None

    def write(self, stem: str, stamp: Stamp, data: bytes) -> Path:
        """Write a thumbnail atomically and return its path. The stem is its name unless another image has it.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            # The lock makes two thumbnails with the same stem choose their names one after the other.
            with staged(self.path, data) as temporary, self._naming:
                path = self._choose(stem, stamp)
                os.replace(temporary, path)
                return path
        except OSError as error:
            raise OutputError(f"cannot write {stem}.jpg: {_reason(error)}") from error

    def _choose(self, stem: str, stamp: Stamp) -> Path:
        names = self._names(stem, stamp)
        found = [_look(path, stamp) for path in names]
        for wanted in (_Taken.OURS, _Taken.NOTHING):
            if wanted in found:
                return names[found.index(wanted)]
        raise OutputError(f"cannot write {names[-1].name}: the file exists and is not a thumbnail of this image")

    def _names(self, stem: str, stamp: Stamp) -> tuple[Path, Path]:
        return self.path / f"{stem}.jpg", self.path / f"{stem}-{stamp.source[:12]}.jpg"


def _look(path: Path, stamp: Stamp) -> Whole | _Taken:
    if not path.is_file():  # a folder or a device cannot be a thumbnail
        return _Taken.FOREIGN if path.exists() or path.is_symlink() else _Taken.NOTHING
    try:
        with path.open("rb") as file:
            end = file.seek(-2, 2) + 2
            closed = file.read() == b"\xff\xd9"
            file.seek(0)
            with Image.open(file, formats=("JPEG",)) as image:
                width, height = image.size
                theirs = Stamp.decode(image.info.get("comment", b""))
    except Exception:
        return _Taken.FOREIGN  # this program did not write it
    if theirs is None or theirs.source != stamp.source:
        return _Taken.FOREIGN
    if theirs != stamp or not closed or width > stamp.size[0] or height > stamp.size[1]:
        return _Taken.OURS
    return Whole(path=path, width=width, height=height, bytes=end)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
