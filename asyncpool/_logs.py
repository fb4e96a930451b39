"""How the package logs: one logger, guarded, and one rule for messages that could come by the thousand.

Nothing else in the package uses `logging` (tests/test_logging.py).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from asyncpool._guard import is_error, name_of, safe_text, traceback_of

__all__ = ["forward_records", "is_logged", "log", "redirect_handlers", "relay"]

_MAX_INT = 2**63
_MAX_TEXT = 4000


def is_logged(count: int) -> bool:
    """Return whether an occurrence is logged, by its number: the 1st, 2nd, 4th, 8th ... is."""
    return count & (count - 1) == 0


class _Described(str):
    """The repr of an object of the user, which `%r` and `%s` both give as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str.__str__(self)


class _CannotBeFormatted(Exception):
    """Replaces, in a log record, an error whose own methods raise when its traceback is formatted."""


class _Log:
    """The logger `asyncpool`. A call returns, whatever the filters and handlers of the program raise.

    A message is often logged between two changes of state, and an exception there would leave the second undone: a
    job without an outcome, a close() that never returns. An exception of a filter or handler costs its message, which
    goes to stderr instead. A KeyboardInterrupt or SystemExit is raised in the next iteration of the loop.

    Objects of the user are described when the message is logged, and only if it is: a handler that formats later, in
    another thread, gets plain text.
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, *args: object) -> None:
        """Log a message for those who debug a program."""
        self._log(logging.DEBUG, message, args)

    def info(self, message: str, *args: object) -> None:
        """Log a message about something expected."""
        self._log(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        """Log a message about something that somebody should look at."""
        self._log(logging.WARNING, message, args)

    def error(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log a failure, with the error that caused it."""
        self._log(logging.ERROR, message, args, exc_info)

    def _log(self, level: int, message: str, args: tuple[object, ...], error: BaseException | None = None) -> None:
        try:
            if not self._logger.isEnabledFor(level):
                return
            args = tuple(map(_plain, args))
            exc_info = None if error is None else _exc_info(error)
            self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=3)  # the caller of `error`
        except BaseException as raised:
            if is_error(raised, (KeyboardInterrupt, SystemExit)):
                _raise_soon(raised)
            else:
                self._report(raised, message, args)

    @staticmethod
    def _report(raised: BaseException, message: str, args: tuple[object, ...]) -> None:
        """Write to stderr that a message is not in the log, unless the program silences errors of logging."""
        if not logging.raiseExceptions:
            return
        try:
            sys.stderr.write(
                f"asyncpool: logging raised {name_of(type(raised))}, so this message is not in the log: "
                f"{message % tuple(map(_plain, args))}\n"
            )
        except KeyboardInterrupt as interrupt:
            _raise_soon(interrupt)
        except BaseException:
            pass  # there is no stderr, or it is closed


def _plain(value: object) -> object:
    """Return an argument of a message as it is if it is a short text or a number, otherwise its description."""
    if type(value) is str and len(value) <= _MAX_TEXT:
        return value
    if type(value) is int and -_MAX_INT < value < _MAX_INT:  # the text of a huge one raises
        return value
    return value if type(value) is float else _Described(safe_text(repr, value))


def _exc_info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return what a handler formats. Formatted once here, because a handler cannot guard itself against the error."""
    where = traceback_of(error)
    try:
        traceback.format_exception(type(error), error, where)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:
        text = f"{name_of(type(error))}, which cannot be formatted: that raised {name_of(type(raised))}"
        return _CannotBeFormatted, _CannotBeFormatted(text), where
    return type(error), error, where


def _raise_soon(error: BaseException) -> None:
    """Raise what is the program's in a loop iteration of its own; without a loop, here."""
    loop = asyncio._get_running_loop()
    if loop is None:
        raise error
    loop.call_soon(_raise, error)


def _raise(error: BaseException) -> NoReturn:
    raise error


log = _Log(logging.getLogger("asyncpool"))


def relay(attributes: dict[str, Any]) -> None:
    """Log a record that another process made, from its attributes, to the logger of the same name. Guarded as `log`."""
    try:
        record = logging.makeLogRecord(attributes)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except BaseException as raised:
        if is_error(raised, (KeyboardInterrupt, SystemExit)):
            _raise_soon(raised)
        else:
            log.error("a log record of another process could not be logged", exc_info=raised)


class _Forwarder(logging.Handler):
    """Sends records to another process, as plain values."""

    def __init__(self, send: Callable[[dict[str, Any]], object]) -> None:
        super().__init__(logging.WARNING)
        self._send = send
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            attributes: dict[str, Any] = {
                name: value if type(value) in (str, int, float, bool, type(None)) else safe_text(repr, value)
                for name, value in record.__dict__.items()
            }
            error = record.exc_info
            attributes |= {
                "msg": record.getMessage(),
                "args": None,
                "exc_info": None,
                "exc_text": record.exc_text or (self._formatter.formatException(error) if error else None),
            }
            self._send(attributes)
        except Exception:
            self.handleError(record)


def forward_records(send: Callable[[dict[str, Any]], object]) -> None:
    """Have each record of level WARNING or above sent to another process, whose `relay` logs it there."""
    logging.getLogger().addHandler(_Forwarder(send))


def redirect_handlers(old: object, new: Any) -> Callable[[], None]:
    """Have the handlers of the program that write to one stream write to another; return what takes that back."""
    loggers = (logging.getLogger(), *list(logging.Logger.manager.loggerDict.values()))
    handlers: list[Any] = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    moved = [
        handler
        for handler in handlers
        if issubclass(type(handler), logging.StreamHandler) and getattr(handler, "stream", None) is old
    ]
    for handler in moved:
        handler.setStream(new)

    def take_back() -> None:
        for handler in moved:
            if handler.stream is new:
                handler.setStream(old)

    return take_back
