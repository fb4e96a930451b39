"""The command line: arguments and exit status.

`service.py` does the work, and `report.py` prints the results.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import asyncpool
from asyncpool.dashboard import serve_dashboard
from asyncpool.events import PoolStopping
from examples.command_line import FAILED, INTERRUPTED, OK, USAGE, Parser, printable
from examples.image_service.console import Console, make_console
from examples.image_service.contact_sheet import make_contact_sheet
from examples.image_service.demo import Expectation, make_demo
from examples.image_service.errors import OutputError
from examples.image_service.names import stem_of
from examples.image_service.report import Report
from examples.image_service.server import PhotoServer
from examples.image_service.service import ImageService, Source
from examples.image_service.sources import SourceError, read_sources

__all__ = ["main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    sources: Sequence[str]
    out: Path
    size: tuple[int, int]
    quality: int
    workers: int
    max_width: int
    timeout: float
    rate: float | None
    demo_photos: Path
    demo_count: int
    dashboard: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    options = _parse(arguments)
    # A program can make these choices; a library must not. Photos with too many pixels are rejected where Pillow only
    # warns, and slightly invalid EXIF blocks are ignored. The report shows what the pool does, so log errors only.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    logging.getLogger("asyncpool").setLevel(logging.ERROR)
    logging.getLogger("asyncpool").addFilter(_is_not_of_an_interrupt)
    try:
        return asyncio.run(_run(options, make_console()))
    except (SourceError, OutputError) as error:
        print(f"image_service: error: {printable(str(error))}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output closed the pipe. Python flushes stdout once more when it exits: drop that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _is_not_of_an_interrupt(record: logging.LogRecord) -> bool:
    # Two Ctrl+C at once make asyncio cancel all tasks. Jobs that were cancelled by that are not worth a log line.
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


async def _run(options: Options, console: Console) -> int:
    async with PhotoServer() as server:
        sources: Sequence[Source]
        expected: Mapping[Source, Expectation] = {}
        if options.sources:
            sources = await asyncpool.offload(read_sources)(options.sources, server, options.out)
        else:
            console.say(
                f"Demo: {options.demo_count} photos of 4 to 12 megapixels, kept in {options.demo_photos} "
                "(generating them takes a few seconds on the first run)"
            )
            demo = await make_demo(server, options.demo_photos, options.demo_count)
            if demo is None:
                console.say("Interrupted: run the same command again to continue.")
                return INTERRUPTED
            sources, expected = demo.sources, demo.expected
            broken = ", ".join(f"{stem_of(source.url)} {why.what}" for source, why in expected.items())
            console.say(f"plus {len(expected)} images that are broken on purpose: {broken}")
        report = Report(sources, expected, console)
        if await _process(sources, options, console, report):
            rest = ": run the same command again to process the rest" if report.unfinished else ""
            console.say(f"Interrupted{rest}.")
            return INTERRUPTED
    if not report.thumbnails:
        console.say("No contact sheet: there are no thumbnails.")
    else:
        path = options.out / "contact-sheet.png"
        try:
            await make_contact_sheet(report.thumbnails, path, options.size[0] / options.size[1])
        except OutputError as error:
            console.say(f"FAILED: {error}", "red")
            return FAILED
        console.say(f"Contact sheet: {path}", "bold")
    return OK if report.is_good else FAILED


async def _process(sources: Sequence[Source], options: Options, console: Console, report: Report) -> bool:
    """Process all sources and report them; return whether the run was interrupted."""
    signals: asyncpool.drain_on_signal | None = None

    def announce_stop(event: asyncpool.Event) -> None:
        if isinstance(event, PoolStopping) and signals is not None and signals.received:
            console.say("Stopping: finishing the images in progress; press Ctrl+C again to cancel them.", "yellow")
            service.pool.cancel_queued()  # images that wait for their host, or for another attempt

    service = ImageService(
        options.out,
        size=options.size,
        quality=options.quality,
        workers=options.workers,
        max_width=options.max_width,
        timeout=options.timeout,
        rate=options.rate,
        observers=[announce_stop],
    )
    async with service, _dashboard(service, console, options.dashboard):
        width, height = options.size
        console.say(
            f"Resizing {len(sources):,} image{'s' * (len(sources) != 1)} to fit {width}x{height} pixels, "
            f"{options.workers} at a time, into {options.out}{os.sep}"
        )
        began = time.perf_counter()
        with asyncpool.drain_on_signal(service.pool) as signals:
            try:
                async for outcome in console.track(service.process(sources), len(sources)):
                    report.add(outcome)
            except asyncpool.PoolClosed:
                if not signals.received:  # after a signal, the report lists what is unfinished
                    raise
        report.sum_up(time.perf_counter() - began, service.pool.stats.retries)
    return signals.received > 0


def _dashboard(service: ImageService, console: Console, is_wanted: bool) -> AbstractAsyncContextManager[object]:
    if not is_wanted:
        return nullcontext()
    return serve_dashboard(service.pool, actions=True, title="Image service", announce=console.say)


# -- The arguments --


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="image_service",
        usage="python -m examples.image_service [SOURCE ...] --out DIR [options]",
        description="Download photos and make thumbnails of them, several at a time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="a URL, a file of URLs, a photo or a folder of photos")
    add("--out", required=True, type=_folder, metavar="DIR", help="the folder for the thumbnails")
    add("--size", default="800x600", type=_size, metavar="WxH", help="the size that thumbnails must fit into (800x600)")
    add("--quality", default=85, type=_whole(1, 100), metavar="N", help="JPEG quality, 1 to 100 (85)")
    add(
        "--workers",
        default=8,
        type=_whole(1),
        metavar="N",
        help="how many images are processed at a time (8)",
    )
    add("--max-width", type=_whole(1), metavar="N", help="reject photos that are wider (no limit; in the demo 4000)")
    add("--timeout", type=_positive, metavar="S", help="time limit for a download in seconds (30; in the demo 4)")
    add("--rate", type=_positive, metavar="N", help="the most downloads per second from each host (what it allows)")
    add(
        "--demo-photos",
        type=Path,
        metavar="DIR",
        help="the folder for the photos of the demo (.demo-photos in --out)",
    )
    add("--demo-count", default=24, type=_whole(1, 999), metavar="N", help="the number of photos in the demo (24)")
    add("--dashboard", action="store_true", help="serve a page that shows what the pool does, and print its address")
    found = parser.parse_args(arguments)
    if found.max_width is None:
        found.max_width = 65_500 if found.sources else 4000
    if found.timeout is None:
        found.timeout = 30.0 if found.sources else 4.0
    if found.demo_photos is None:
        found.demo_photos = found.out / ".demo-photos"
    return Options(**vars(found))


_EPILOG = """\
Photos on disk are served over loopback HTTP, so they are downloaded like any others. A file of
URLs has one URL per line; # starts a comment. Without a SOURCE, a set of photos is generated and
served, some of them broken on purpose.

Downloads that failed temporarily are retried. A host that responds with 429 or 503 is given time, as
long as its Retry-After asks for, and is then asked less often.

Thumbnails that already exist, are undamaged and were made with the same options are skipped.
Ctrl+C finishes the images in progress and lists the unfinished ones; a second Ctrl+C cancels.

Exit status: 0 on success; 1 if an image failed (in the demo: if not exactly the broken images
failed); 2 if the arguments are invalid; 130 if it was interrupted.
"""


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the folder name must not be empty (use . for the current folder)")
    return Path(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
    if match is None or not all(1 <= int(part) <= 65_500 for part in match.groups()):
        rule = "must be WIDTHxHEIGHT, each from 1 to 65500 pixels, such as 800x600"
        raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
    return (int(match[1]), int(match[2]))


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            rule = f">= {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be an integer {rule}, got {text!r}")
        return number

    return read


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.001 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number >= 0.001, got {text!r}")
    return number
