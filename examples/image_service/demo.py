"""The demo: two dozen photos, and five images that are broken on purpose, each with the error that it must cause."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpool
from examples.demo_photos.photos import VERSION, paint_photo, paint_wide_photo
from examples.image_service.errors import (
    DownloadFailed,
    DownloadTimedOut,
    ImageDamaged,
    ImageServiceError,
    ImageTooLarge,
    NotAnImage,
    OutputError,
)
from examples.image_service.files import sweep, write_whole
from examples.image_service.server import PhotoServer
from examples.image_service.service import Source

__all__ = ["Demo", "Expectation", "make_demo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """How an image must fail."""

    what: str
    """What is wrong with the image."""
    error: type[ImageServiceError]
    says: str
    """A part of the error message."""

    def is_met_by(self, error: BaseException) -> bool:
        """Whether the image failed for this reason."""
        return type(error) is self.error and self.says in str(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The images to process, in order, and how some of them must fail."""

    sources: Sequence[Source]
    expected: dict[Source, Expectation]


async def make_demo(server: PhotoServer, folder: Path, count: int) -> Demo | None:
    """Create the photos that are missing in the folder, and add all of them to the server.

    The first call keeps all cores busy for some seconds. Later calls find the photos in the folder.

    Returns:
        The images; None if Ctrl+C interrupted the work.

    Raises:
        OutputError: The folder cannot be written to.
    """
    photos = [folder / f"photo{number:03}-v{VERSION}.jpg" for number in range(count)]
    wide, cut, text = (folder / f"{name}-v{VERSION}.jpg" for name in ("wide", "cut", "text"))

    def make(number: int) -> None:
        if number == count:
            if not wide.exists():
                write_whole(wide, paint_wide_photo())
        elif not photos[number].exists():
            write_whole(photos[number], paint_photo(number))

    def break_some() -> None:
        sweep(folder)
        whole = photos[0].read_bytes()
        write_whole(cut, whole[: len(whole) * 2 // 3])
        write_whole(text, b"<html><body>This is a web page that calls itself a photo.</body></html>\n" * 40)

    try:
        await asyncpool.offload(partial(folder.mkdir, parents=True, exist_ok=True))()
        if not await _run_all(make, range(count + 1)):
            return None
        await asyncpool.offload(break_some)()
    except OSError as error:
        raise OutputError(f"cannot write the photos of the demo to {folder}: {error.strerror or error}") from error

    # For each image: what to serve, and how it must fail. Names follow from the final order, so they come last.
    images: list[tuple[Callable[[str], str], Expectation | None]] = [
        (partial(server.add, path), None) for path in photos
    ]
    for place, served, what, kind, says in (
        # The stalled download is an early one, so its timeout passes while the others are processed.
        (2, partial(server.add_stalled, photos[0]), "stalls halfway", DownloadTimedOut, "timed out after"),
        (4, partial(server.add, wide), "is too wide", ImageTooLarge, "max width is"),
        (10, partial(server.add, cut), "is cut off", ImageDamaged, "truncated"),
        (16, partial(server.add, text), "is text", NotAnImage, "not an image"),
        (22, server.add_missing, "is missing", DownloadFailed, "404"),
    ):
        images.insert(place, (served, Expectation(what=what, error=kind, says=says)))

    sources: list[Source] = []
    expected: dict[Source, Expectation] = {}
    for number, (serve, expectation) in enumerate(images, start=1):
        name = f"img{number:03}"
        source = Source(url=serve(f"{name}.jpg"), origin=f"demo {name}", revision=f"{VERSION} of {count}")
        sources.append(source)
        if expectation is not None:
            expected[source] = expectation
    return Demo(sources=sources, expected=expected)


async def _run_all(make: Callable[[int], None], numbers: Iterable[int]) -> bool:
    """Call `make` for all numbers, on all cores; return False if a signal interrupted it."""
    pool = asyncpool.WorkerPool(
        asyncpool.offload(make),
        workers=os.cpu_count() or 1,
        queue_size=0,  # after a signal, finish only the photos that are being painted
        name="painters",
    )
    async with pool:
        with asyncpool.drain_on_signal(pool) as signals:
            try:
                await pool.map(numbers)
            except (asyncpool.PoolClosed, asyncpool.JobCancelled):
                if not signals.received:
                    raise
    return not signals.received
