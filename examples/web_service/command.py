"""The command line: what is asked for, and the exit status. The service is `service.py`, its life `serving.py`."""

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
    """What was asked for."""

    host: str = "127.0.0.1"
    port: int = 8080
    reuse_port: bool = False
    workers: int = os.cpu_count() or 1
    queue_size: int = 20
    timeout: float = 10.0
    upload_timeout: float = 10.0
    max_mb: float = 10.0
    max_megapixels: float = 50.0
    lame_duck: float = 1.0
    drain_timeout: float = 30.0
    demo: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Raises `SystemExit(2)` if the arguments make no sense."""
    options = _parse(arguments)
    # Choices for a whole program: photos with too many pixels are refused where Pillow would only warn, and EXIF
    # blocks that are not quite right are nobody's business.
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
    # What is no HTTP gets a 400 from aiohttp. Anybody can send it, so that a traceback each would fill the disk.
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError)


def _what(options: Options) -> str:
    workers = "1 worker" if options.workers == 1 else f"{options.workers} workers"
    return f"{workers}, a queue of {options.queue_size}"


class _Lines:
    """Prints lines, until nobody takes them: that is no reason for a service to stop, or to stop in another way."""

    def __init__(self) -> None:
        self._error: OSError | None = None

    def say(self, text: str) -> None:
        """Print a line, at once. Never raises."""
        if self._error is None:
            try:
                print(printable(text), flush=True)
            except OSError as error:
                self._error = error

    def check(self) -> None:
        """At the end, raise the error that came when a line was printed."""
        if self._error is not None:
            raise self._error


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="web_service",
        usage="python -m examples.web_service [options]",
        description="An HTTP service that makes thumbnails of the photos that are posted to it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default, add = Options(), parser.add_argument
    seconds = positive(86_400)
    add("--demo", action="store_true", help="show it: start on a free port, post photos, stop")
    add("--host", metavar="ADDRESS", help=f"where to listen ({default.host})")
    add("--port", type=whole(0, 65_535), metavar="N", help=f"where to listen; 0 for a free port ({default.port})")
    add("--reuse-port", action="store_true", help="let other instances listen on the same port (SO_REUSEPORT)")
    add("--workers", type=whole(1, 1000), metavar="N", help="how many thumbnails are made at a time (one a processor)")
    add("--queue-size", type=whole(0, 100_000), metavar="N", help=f"how many photos may wait ({default.queue_size})")
    add("--timeout", type=seconds, metavar="S", help=f"seconds until a client gets a 504 ({default.timeout:g})")
    add("--upload-timeout", type=seconds, metavar="S", help=f"... and an upload a 408 ({default.upload_timeout:g})")
    add("--max-mb", type=positive(10_000), metavar="N", help=f"larger bodies are refused ({default.max_mb:g})")
    add("--max-megapixels", type=positive(1000), metavar="N", help=f"larger photos too ({default.max_megapixels:g})")
    add(
        "--lame-duck",
        type=_seconds_or_none,
        metavar="S",
        help=f"seconds between SIGTERM and the end of listening, in which /healthz is 503 ({default.lame_duck:g})",
    )
    add("--drain-timeout", type=seconds, metavar="S", help=f"seconds to finish photos then ({default.drain_timeout:g})")
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    options = Options(**vars(parser.parse_args(arguments)))
    if options.reuse_port and options.port == 0:
        parser.error("--reuse-port needs a --port, got 0")
    return options


def _seconds_or_none(text: str) -> float:
    return 0.0 if text == "0" else positive(86_400)(text)


_EPILOG = """\
GET / says how to use it. The first SIGTERM or Ctrl+C drains: see serving.py. The second cancels
what is not done yet.

Exit status: 0 if all that was accepted was finished, or left by its client; 1 if --drain-timeout
was too short for that, if it could not listen, or if nobody read its lines; 2 if the command
makes no sense; 130 after a second signal.
"""
