"""Print a line for each image, and a summary at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncpool
from examples.image_service.console import Console
from examples.image_service.demo import Expectation
from examples.image_service.errors import ImageServiceError
from examples.image_service.names import shown_url, stem_of
from examples.image_service.service import Photo, Source, Thumbnail

__all__ = ["Report"]


class Report:
    """Prints each image when it is done, and collects the figures for the summary.

    Args:
        sources: All images, in their order.
        expected: The images of the demo that must fail, and how.
        console: Prints the lines.
    """

    def __init__(self, sources: Sequence[Source], expected: Mapping[Source, Expectation], console: Console) -> None:
        self._sources = sources
        self._expected = expected
        self._console = console
        self._thumbnails: dict[Photo, Thumbnail] = {}
        self._failed: dict[Photo, bool] = {}  # the value: whether it failed as expected
        self._wrong = 0

    @property
    def is_good(self) -> bool:
        """Whether exactly the images failed that had to fail."""
        return not self._wrong and not self.unfinished

    @property
    def unfinished(self) -> list[Source]:
        """The images that neither succeeded nor failed, in their order."""
        return [source for source in self._sources if source not in self._thumbnails and source not in self._failed]

    @property
    def thumbnails(self) -> list[Path]:
        """The existing files, in the order of their sources."""
        return [self._thumbnails[source].path for source in self._sources if source in self._thumbnails]

    def add(self, outcome: asyncpool.Outcome[Photo, Thumbnail]) -> None:
        """Print the outcome of an image."""
        match outcome:
            case asyncpool.Succeeded(photo, thumbnail):
                self._thumbnails[photo] = thumbnail
                self._print_success(thumbnail, outcome.seconds_running)
                if (expectation := self._expectation(photo)) is not None:
                    self._wrong += 1
                    self._console.say(f"WRONG: Image {thumbnail.name} {expectation.what} but did not fail", "red")
            case asyncpool.Failed(photo, error):
                expectation = self._expectation(photo)
                as_expected = expectation is not None and expectation.is_met_by(error)
                self._failed[photo] = as_expected
                self._wrong += not as_expected
                note = " (as expected)" if as_expected else self._origin(photo)
                self._console.say(
                    f"FAILED: Image {_name(photo)} - {_message(error)}{note}",
                    "yellow" if as_expected else "red",
                )
            case asyncpool.Cancelled():
                pass  # the summary lists it among the unfinished images

    def sum_up(self, seconds: float, retries: int) -> None:
        """Print the unfinished images, the counts and the throughput."""
        unfinished = self.unfinished
        for source in unfinished:
            self._console.say(f"UNFINISHED: Image {_name(source)}{self._origin(source)}", "yellow")
        done = [thumbnail for thumbnail in self._thumbnails.values() if not thumbnail.skipped]
        parts = [f"{len(done)} done", f"{len(self._thumbnails) - len(done)} skipped"]
        expected = sum(self._failed.values())
        note = " as expected" if expected == len(self._failed) else f" ({expected} of them as expected)"
        parts.append(f"{len(self._failed)} failed{note if expected else ''}")
        if retries:
            parts.append("1 retry" if retries == 1 else f"{retries:,} retries")
        if unfinished:
            parts.append(f"{len(unfinished)} unfinished")
        self._console.say(f"{_images(len(self._sources))} in {seconds:.1f} s: {', '.join(parts)}", "bold")
        if not done:
            return  # skipped and failed images say nothing about the throughput
        megabytes_in = sum(thumbnail.bytes_in for thumbnail in done) / 1024**2
        megabytes_out = sum(thumbnail.bytes_out for thumbnail in done) / 1024**2
        self._console.say(
            f"{len(done) / seconds:.1f} images/s, {megabytes_in / seconds:.1f} MB/s in, "
            f"{megabytes_out / seconds:.1f} MB/s out"
        )

    def _print_success(self, thumbnail: Thumbnail, seconds: float) -> None:
        kilobytes = f"{thumbnail.bytes_out / 1024:.1f} KB"
        if thumbnail.skipped:
            size = f"{thumbnail.width}x{thumbnail.height}"
            self._console.say(f"SKIPPED: Image {thumbnail.name} - already exists ({size}, {kilobytes})", "dim")
        else:
            self._console.say(
                f"SUCCESS: Image {thumbnail.name} processed in {seconds * 1000:.0f}ms "
                f"({thumbnail.bytes_in / 1024:.1f} KB -> {kilobytes})",
                "green",
            )

    def _expectation(self, photo: Photo) -> Expectation | None:
        return self._expected.get(photo) if isinstance(photo, Source) else None

    def _origin(self, photo: Photo) -> str:
        # The images of the demo have no origin that is worth printing.
        if self._expected:
            return ""
        return f" ({photo.label if isinstance(photo, Source) else shown_url(photo)})"


def _name(photo: Photo) -> str:
    return stem_of(photo.url if isinstance(photo, Source) else photo)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _message(error: BaseException) -> str:
    # Any other error is a bug in this program: print its type too, because its text alone can be unclear.
    return str(error) if isinstance(error, ImageServiceError) else f"{type(error).__name__}: {error}"
