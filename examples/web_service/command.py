"""The command line: arguments and exit status. `service.py` has the service, and `serving.py` runs it."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from PIL import Image

from examples.command_line import FAILED, INTERRUPTED, OK, Parser, finish, positive, printable, whole
from examples.web_service.demo import Demo
from examples.web_service.service import ThumbnailService
from examples.web_service.serving import Server

__all__ = ["Options", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    host: str = "127.0.0.1"
    port: int = 8080
    reuse_port: bool = False
    workers: int = os.cpu_count() or 1
    queue_size: int = 20
    timeout: float = 10.0
    upload_timeout: float = 10.0
    max_mb: float = 10.0
    max_megapixels: float = 50.0
    megapixels_at_once: float | None = None
    max_uploads: int = 200
    max_upload_mb: float = 100.0
    lame_duck: float = 1.0
    drain_timeout: float = 30.0
    demo: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    options = _parse(arguments)
    # A program can make these choices: reject photos with too many pixels, where Pillow only warns, and ignore slightly
    # invalid EXIF blocks.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_is_not_of_bad_http)
    lines = _Lines()
    service = ThumbnailService(
        workers=options.workers,
        queue_size=options.queue_size,
        timeout=options.timeout,
        upload_timeout=options.upload_timeout,
        max_bytes=round(options.max_mb * 1024**2),
        max_pixels=round(options.max_megapixels * 1e6),
        max_pixels_at_once=None if options.megapixels_at_once is None else round(options.megapixels_at_once * 1e6),
        max_uploads=options.max_uploads,
        max_upload_bytes=round(options.max_upload_mb * 1024**2),
    )
    server = Server(
        service,
        host=options.host,
        port=0 if options.demo else options.port,
        reuse_port=options.reuse_port,
        lame_duck=options.lame_duck,
        drain_timeout=options.drain_timeout,
        say=lines.say,
    )

    async def run() -> None:
        if options.demo:
            async with Demo(lines.say, server.stop) as demo:
                await server.run(demo.start)
        else:
            await server.run(lambda address: lines.say(f"Listening on {address}: {_what(options)}. Ctrl+C drains."))
        for line in server.summary():
            lines.say(line)
        lines.check()

    status = finish("web_service", run, lambda: "; ".join(server.summary()))
    if status == OK and server.was_cut_short:
        return INTERRUPTED
    return FAILED if status == OK and server.unfinished else status


def _is_not_of_bad_http(record: logging.LogRecord) -> bool:
    # aiohttp responds to invalid HTTP with 400. Anyone can send it, and a traceback for each would fill the disk.
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError)


def _what(options: Options) -> str:
    workers = "1 worker" if options.workers == 1 else f"{options.workers} workers"
    return f"{workers}, queue size {options.queue_size}"


class _Lines:
    """Prints lines until printing fails: a service should keep running, and stop as usual, if its output is closed."""

    def __init__(self) -> None:
        self._error: OSError | None = None

    def say(self, text: str) -> None:
        """Print a line and flush it. Never raises."""
        if self._error is None:
            try:
                print(printable(text), flush=True)
            except OSError as error:
                self._error = error

    def check(self) -> None:
        """Raise the first error of `say`, if there was one. Call it at the end."""
        if self._error is not None:
            raise self._error


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="web_service",
        usage="python -m examples.web_service [options]",
        description="Run an HTTP service that makes thumbnails of photos that are posted to it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default, add = Options(), parser.add_argument
    seconds = positive(86_400)
    add("--demo", action="store_true", help="run a demo: start on a free port, post photos, stop")
    add("--host", metavar="ADDRESS", help=f"the address to listen on ({default.host})")
    add("--port", type=whole(0, 65_535), metavar="N", help=f"the port; 0 for a free one ({default.port})")
    add("--reuse-port", action="store_true", help="let other instances listen on the same port (SO_REUSEPORT)")
    add("--workers", type=whole(1, 1000), metavar="N", help="the number of workers (one per processor)")
    add("--queue-size", type=whole(0, 100_000), metavar="N", help=f"how many photos can wait ({default.queue_size})")
    add("--timeout", type=seconds, metavar="S", help=f"time limit in seconds for a thumbnail ({default.timeout:g})")
    add("--upload-timeout", type=seconds, metavar="S", help=f"time limit for an upload ({default.upload_timeout:g})")
    add("--max-mb", type=positive(10_000), metavar="N", help=f"reject larger bodies ({default.max_mb:g})")
    add("--max-megapixels", type=positive(1000), metavar="N", help=f"reject larger photos ({default.max_megapixels:g})")
    add(
        "--megapixels-at-once",
        type=positive(100_000),
        metavar="N",
        help="how much is decoded at the same time (12.5 per worker, at least --max-megapixels)",
    )
    add("--max-uploads", type=whole(1, 100_000), metavar="N", help=f"uploads at a time ({default.max_uploads})")
    add("--max-upload-mb", type=positive(100_000), metavar="N", help=f"what they have sent ({default.max_upload_mb:g})")
    add(
        "--lame-duck",
        type=_seconds_or_none,
        metavar="S",
        help=f"keep listening for S seconds after SIGTERM, with 503 at /healthz ({default.lame_duck:g})",
    )
    add("--drain-timeout", type=seconds, metavar="S", help=f"time limit for the drain ({default.drain_timeout:g})")
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    options = Options(**vars(parser.parse_args(arguments)))
    if options.reuse_port and options.port == 0:
        parser.error("--reuse-port needs a --port, got 0")
    return options


def _seconds_or_none(text: str) -> float:
    return 0.0 if text == "0" else positive(86_400)(text)


_EPILOG = """\
GET / shows how to use the service. The first SIGTERM or Ctrl+C drains it (see serving.py); the
second cancels unfinished photos.

Exit status: 0 if all accepted photos were finished or abandoned by their clients; 1 if
--drain-timeout was too short, if the service could not listen, or if its output could not be
written; 2 if the arguments are invalid; 130 after a second signal.
"""
