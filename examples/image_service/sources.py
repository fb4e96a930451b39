"""Read the SOURCE arguments: each is a URL, a file of URLs, a photo, or a folder of photos.

Photos on disk are served over loopback HTTP, so they are downloaded like all others. The functions read folders and
files, so call them in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from examples.image_service.download import check_url
from examples.image_service.errors import BadUrl
from examples.image_service.names import PHOTO_SUFFIXES, shown_url
from examples.image_service.server import PhotoServer
from examples.image_service.service import Source

__all__ = ["SourceError", "read_sources"]


class SourceError(Exception):
    """A source does not exist, cannot be read, or contains no photos."""


def read_sources(arguments: Iterable[str], server: PhotoServer, out: Path) -> list[Source]:
    """Return the photos of all arguments, in their order and without duplicates.

    Args:
        arguments: The SOURCE arguments as typed.
        server: The server to which photos on disk are added.
        out: The folder for the thumbnails, which cannot be a source.

    Raises:
        SourceError: An argument cannot be used as a source.
    """
    sources = {source.origin: source for argument in arguments for source in _read(argument, server, out)}
    if not sources:
        raise SourceError("the sources contain no photos")
    return list(sources.values())


def _read(argument: str, server: PhotoServer, out: Path) -> Iterator[Source]:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", argument):
        try:
            check_url(argument)
        except BadUrl as error:
            raise SourceError(f"{shown_url(argument)} is {error}") from error
        yield Source(url=argument, origin=argument)
        return
    path = Path(argument)
    try:
        if path.is_dir():
            yield from _read_folder(path, server, out)
        elif path.suffix.lower() in PHOTO_SUFFIXES and path.is_file():
            yield _photo(path, server)
        elif path.exists():
            yield from _read_list(path)
        else:
            raise SourceError(f"{argument} is neither a URL nor an existing file or folder")
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = error.strerror if isinstance(error, OSError) else None
        raise SourceError(f"{argument} cannot be read: {reason or error}") from error


def _read_folder(folder: Path, server: PhotoServer, out: Path) -> Iterator[Source]:
    if out.exists() and folder.samefile(out):
        raise SourceError(f"{folder} is the output folder, which cannot also be a source")
    thumbnails = out.resolve()
    is_below = thumbnails.is_relative_to(folder.resolve())
    count = 0
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in PHOTO_SUFFIXES or not path.is_file():
            continue
        if is_below and path.resolve().is_relative_to(thumbnails):
            continue  # a thumbnail of an earlier run
        count += 1
        yield _photo(path, server)
    if not count:
        raise SourceError(f"there are no photos in the folder {folder}")


def _photo(path: Path, server: PhotoServer) -> Source:
    state = path.stat()
    origin = str(path.resolve())
    revision = f"{state.st_size} bytes of {state.st_mtime_ns}"
    return Source(url=server.add(path), origin=origin, revision=revision, label=origin)


def _read_list(path: Path) -> Iterator[Source]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is neither a photo nor a text file of URLs") from error
    count = 0
    for number, line in enumerate(text.splitlines(), start=1):
        url = re.sub(r"(^|\s)#.*", "", line).strip()  # a # inside a URL is part of it
        if url:
            count += 1
            shown = shown_url(url)
            # Two URLs can look the same without their queries.
            yield Source(url=url, origin=url, label=shown if shown == url else f"{shown}, line {number} of {path}")
    if not count:
        raise SourceError(f"there are no URLs in the file {path}")
