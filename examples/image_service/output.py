"""The folder of thumbnails: choose the file of each image, find existing thumbnails, and write new ones.

`https://a/photo.jpg` is written as `photo.jpg`. If that name is taken, `https://b/photo.jpg` is written as
`photo-0123456789ab.jpg`, with a hash of its source. Each file contains a stamp (as the JPEG comment) with its source,
its options, and a checksum of the whole file. So a rerun recognizes its own files, whatever their names, notices any
damage, and never replaces a file with another source.
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
        """Return the stamp as text, for the comment of a JPEG. `OutputFolder.write` fills in the checksum."""
        width, height = self.size
        return (
            f"image_service: source {self.source}, revision {self.revision}, "
            f"size {width}x{height}, quality {self.quality}, "
        ).encode() + _UNSEALED

    @classmethod
    def decode(cls, comment: bytes) -> Stamp | None:
        """Parse the comment of a thumbnail; return None for any other comment."""
        match = _STAMP.fullmatch(comment)
        if match is None:
            return None
        source, revision, width, height, quality = (part.decode() for part in match.groups())
        return cls(source=source, revision=revision, size=(int(width), int(height)), quality=int(quality))


_STAMP = re.compile(
    rb"image_service: source ([0-9a-f]{16}), revision ([0-9a-f]{16}), size (\d+)x(\d+), quality (\d+)"
    rb"(?:, checksum [0-9a-f]{64})?"  # optional: without one, the thumbnail is made again
)
_UNSEALED = b"checksum " + b"0" * 64
_SEAL = re.compile(rb"checksum [0-9a-f]{64}")


def _seal(data: bytes) -> bytes:
    """Put the checksum of a file into its stamp. It is calculated with zeros in its own place."""
    unsealed = _SEAL.sub(_UNSEALED, data, count=1)
    return unsealed.replace(_UNSEALED, b"checksum " + sha256(unsealed).hexdigest().encode(), 1)


def _is_sealed(data: bytes) -> bool:
    return _SEAL.search(data) is not None and _seal(data) == data


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
        """Return the thumbnail with this stamp if it exists and is undamaged: its checksum is that of its bytes."""
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
            with staged(self.path, _seal(data)) as temporary, self._naming:
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
            with Image.open(file, formats=("JPEG",)) as image:  # reads the header only
                width, height = image.size
                theirs = Stamp.decode(image.info.get("comment", b""))
            if theirs is None or theirs.source != stamp.source:
                return _Taken.FOREIGN
            file.seek(0)
            data = file.read()
    except Exception:
        return _Taken.FOREIGN  # this program did not write it
    if theirs != stamp or not _is_sealed(data):
        return _Taken.OURS
    return Whole(path=path, width=width, height=height, bytes=len(data))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
