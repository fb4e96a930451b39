"""What is told of each image, and of all of them at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncpool
from examples.image_service.console import Console
from examples.image_service.demo import Expectation
from examples.image_service.errors import ImageServiceError
from examples.image_service.names import stem_of
from examples.image_service.service import Photo, Source, Thumbnail

__all__ = ["Report"]


class Report:
    """Tells of each image as it is done, and remembers what the end needs.

    Args:
        sources: All the images, in their order.
        expected: Those that must fail, and how: for the demo.
        console: Where it is told.
    """

    def __init__(self, sources: Sequence[Source], expected: Mapping[Source, Expectation], console: Console) -> None:
        self._sources = sources
        self._expected = expected
        self._console = console
        self._thumbnails: dict[Photo, Thumbnail] = {}
        self._failed: dict[Photo, bool] = {}  # and whether it failed as expected
        self._wrong = 0

    @property
    def is_good(self) -> bool:
        """Whether nothing failed that should not, and nothing that should fail did not."""
        return not self._wrong and not self.unfinished

    @property
    def unfinished(self) -> list[Source]:
        """The images that neither succeeded nor failed, in their order."""
        return [source for source in self._sources if source not in self._thumbnails and source not in self._failed]

    @property
    def thumbnails(self) -> list[Path]:
        """The files that are there now, in the order of their sources."""
        return [self._thumbnails[source].path for source in self._sources if source in self._thumbnails]

    def tell(self, outcome: asyncpool.Outcome[Photo, Thumbnail]) -> None:
        """Tell of one image."""
        match outcome:
            case asyncpool.Succeeded(photo, thumbnail):
                self._thumbnails[photo] = thumbnail
                self._tell_success(thumbnail, outcome.seconds_running)
                self._console.advance(None if thumbnail.skipped else thumbnail.bytes_in)
                if (expectation := self._expectation(photo)) is not None:
                    self._wrong += 1
                    self._console.say(f"WRONG: Image {thumbnail.name} {expectation.what}, and did not fail", "red")
            case asyncpool.Failed(photo, error):
                expectation = self._expectation(photo)
                as_expected = expectation is not None and expectation.is_met_by(error)
                self._failed[photo] = as_expected
                self._wrong += not as_expected
                note = " (as expected)" if as_expected else self._whence(photo)
                self._console.say(
                    f"FAILED: Image {_name(photo)} - {_sentence(error)}{note}",
                    "yellow" if as_expected else "red",
                )
                self._console.advance(0)
            case asyncpool.Cancelled():
                pass  # told at the end, among what is unfinished

    def sum_up(self, seconds: float) -> None:
        """Tell what is unfinished, how many images there were, and how fast it went."""
        unfinished = self.unfinished
        for source in unfinished:
            self._console.say(f"UNFINISHED: Image {_name(source)}{self._whence(source)}", "yellow")
        done = [thumbnail for thumbnail in self._thumbnails.values() if not thumbnail.skipped]
        parts = [f"{len(done)} done", f"{len(self._thumbnails) - len(done)} skipped"]
        expected = sum(self._failed.values())
        note = " as expected" if expected == len(self._failed) else f" ({expected} of them as expected)"
        parts.append(f"{len(self._failed)} failed{note if expected else ''}")
        if unfinished:
            parts.append(f"{len(unfinished)} unfinished")
        self._console.say(f"{_images(len(self._sources))} in {seconds:.1f} s: {', '.join(parts)}", "bold")
        if not done:
            return  # what was skipped or failed says nothing of the speed
        megabytes_in = sum(thumbnail.bytes_in for thumbnail in done) / 1024**2
        megabytes_out = sum(thumbnail.bytes_out for thumbnail in done) / 1024**2
        self._console.say(
            f"{len(done) / seconds:.1f} images/s, {megabytes_in / seconds:.1f} MB/s in, "
            f"{megabytes_out / seconds:.1f} MB/s out"
        )

    def _tell_success(self, thumbnail: Thumbnail, seconds: float) -> None:
        kilobytes = f"{thumbnail.bytes_out / 1024:.1f} KB"
        if thumbnail.skipped:
            size = f"{thumbnail.width}x{thumbnail.height}"
            self._console.say(f"SKIPPED: Image {thumbnail.name} - already there ({size}, {kilobytes})", "dim")
        else:
            self._console.say(
                f"SUCCESS: Image {thumbnail.name} processed in {seconds * 1000:.0f}ms "
                f"({thumbnail.bytes_in / 1024:.1f} KB -> {kilobytes})",
                "green",
            )

    def _expectation(self, photo: Photo) -> Expectation | None:
        return self._expected.get(photo) if isinstance(photo, Source) else None

    def _whence(self, photo: Photo) -> str:
        # The demo's images come from nowhere.
        if self._expected:
            return ""
        return f" ({photo.origin if isinstance(photo, Source) else photo})"


def _name(photo: Photo) -> str:
    return stem_of(photo.url if isinstance(photo, Source) else photo)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _sentence(error: BaseException) -> str:
    # Anything else is a mistake of this program: told by its type, as its text alone may say little.
    return str(error) if isinstance(error, ImageServiceError) else f"{type(error).__name__}: {error}"
