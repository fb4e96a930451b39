"""The folder of thumbnails: which file an image has, whether it is there already, and how it gets there.

`https://a/photo.jpg` is written as `photo.jpg`, and `https://b/photo.jpg`, when that name is taken, as
`photo-0123456789ab.jpg`: the number is a hash of where the image comes from. Into each file a stamp is
written (as the JPEG's comment) of where it came from and how it was made. So a rerun knows its files again,
whichever of the two has which name, and no file is replaced that was made of something else.
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
    """Where a thumbnail came from and how it was made. Equal stamps: the same thumbnail.

    The source is stored as a hash: addresses may hold passwords, and thumbnails get published.
    """

    source: str
    revision: str
    size: tuple[int, int]
    quality: int

    @classmethod
    def of(cls, origin: str, revision: str, size: tuple[int, int], quality: int) -> Stamp:
        """The stamp of what is made of the photo at `origin`."""
        return cls(source=_hash(origin), revision=_hash(revision), size=size, quality=quality)

    def encode(self) -> bytes:
        """The stamp as text, for a JPEG's comment."""
        width, height = self.size
        return (
            f"image_service: source {self.source}, revision {self.revision}, "
            f"size {width}x{height}, quality {self.quality}"
        ).encode()

    @classmethod
    def decode(cls, comment: bytes) -> Stamp | None:
        """Read what `encode` wrote; None if it is something else."""
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
    """A thumbnail that is there already, up to date and whole."""

    path: Path
    width: int
    height: int
    bytes: int


class _Taken(Enum):
    """What stands where a thumbnail could be, and is not a whole one of the right making."""

    NOTHING = "nothing"
    OURS = "made of the same photo: to be made anew"
    FOREIGN = "made of another photo, or not by us"


class OutputFolder:
    """A folder that thumbnails are written to. Its methods read and write files: call them in threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._naming = Lock()

    def prepare(self) -> None:
        """Make the folder, see that it can be written to, and remove what a killed run left half-written.

        Raises:
            OutputError: It cannot be made or written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file, and not a folder to write to")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sweep(self.path)
            with staged(self.path, b""):
                pass  # it can be written to
        except OSError as error:
            raise OutputError(f"cannot write to the folder {self.path}: {_reason(error)}") from error

    def find(self, stem: str, stamp: Stamp) -> Whole | None:
        """Return the thumbnail with this stamp if it is there and whole.

        It is whole if its header can be read and bears this very stamp, it fits the box, and the mark that
        ends a JPEG is at its end. As files are only ever written whole, that is enough to find what others
        have cut short.
        """
        for path in self._names(stem, stamp):
            if isinstance(what := _look(path, stamp), Whole):
                return what
        return None

    def write(self, stem: str, stamp: Stamp, data: bytes) -> Path:
        """Write a thumbnail, whole or not at all, and return where: as its stem if that is free or its own.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            # The lock: of two thumbnails that would like the same name, one finds that the other has it.
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
        raise OutputError(f"cannot write {names[-1].name}: it is there, and is not a thumbnail of this image")

    def _names(self, stem: str, stamp: Stamp) -> tuple[Path, Path]:
        return self.path / f"{stem}.jpg", self.path / f"{stem}-{stamp.source[:12]}.jpg"


def _look(path: Path, stamp: Stamp) -> Whole | _Taken:
    if not path.is_file():  # a folder or a device of that name is nobody's thumbnail
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
        return _Taken.FOREIGN  # whatever it is: nothing that this program wrote
    if theirs is None or theirs.source != stamp.source:
        return _Taken.FOREIGN
    if theirs != stamp or not closed or width > stamp.size[0] or height > stamp.size[1]:
        return _Taken.OURS
    return Whole(path=path, width=width, height=height, bytes=end)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
