"""docs/troubleshooting.md explains each exception of the package and each message that it logs, and no others.

Both are read from the source: a class by its bases, a message by the call that logs it. The page quotes a message with
`…` in place of each value, and can leave out its end.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import asyncpool
from tests.markdown import ROOT
from tests.test_language import strings

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCES = [file.read_text(encoding="utf-8") for file in sorted(Path(asyncpool.__file__).parent.rglob("*.py"))]
LEVELS = ("ERROR", "WARNING")
TESTING = {"DeadlockError", "LeakError"}


# -- What is in the source ---------------------------------------------------------------------------------------------


def exceptions(sources: Iterable[str]) -> set[str]:
    """Return the names of the exception classes of some modules, without private ones that only have subclasses."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }
    known = {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    found: set[str] = set()
    while more := {name for name, of in bases.items() if of & (known | found)} - found:
        found |= more
    inner = {base for name in found for base in bases[name]}
    return {name for name in found if not (name.startswith("_") and name in inner)}


def logged(sources: Iterable[str], level: str) -> set[str]:
    """Return the messages that some modules log at a level."""
    return {
        message_of(ast.literal_eval(node.args[0]))
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"log.{level.lower()}"
    }


def message_of(text: str) -> str:
    """Return a format string as the page quotes it: without what it is about, and with `…` for each value."""
    text = re.sub(r"^(?:pool %r|%s)(?:: %s)?: ", "", text)
    return re.sub(r"%[-.\d]*[a-zA-Z]", "…", text).removesuffix(": …")


def texts(sources: Iterable[str]) -> list[str]:
    """Return the string literals of some modules, with `…` for each value."""
    return [re.sub(r"\{\}|%[-.\d]*[a-zA-Z]", "…", found.text) for source in sources for found in strings(source)]


# -- What is on the page -----------------------------------------------------------------------------------------------


def quoted(page: str, heading: str) -> list[str]:
    """Return what is quoted in the first column of the table below a heading, until the next heading."""
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, f"there is no heading {heading!r}"
    section = re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]


def differences(messages: Iterable[str], quotes: list[str]) -> list[str]:
    """Return how the quotes on the page differ from the messages: each of these must begin with one quote."""
    left = set(messages)
    found = [f"on the page twice: {quote}" for quote in sorted(set(quotes)) if quotes.count(quote) > 1]
    for quote in dict.fromkeys(quotes):
        of = [message for message in messages if re.match(rf"{re.escape(quote)}(?!\w)", message)]
        if len(of) != 1:
            found.append(f"on the page, and the beginning of {len(of)} messages: {quote}")
        left.difference_update(of)
    return found + [f"not on the page: {message}" for message in sorted(left)]


def test_the_page_has_all_exceptions_and_no_others() -> None:
    names = quoted(PAGE, "## Exceptions")
    assert len(names) == len(set(names))
    assert set(names) == exceptions(SOURCES)


def test_the_exceptions_are_those_that_can_be_imported() -> None:
    found = {name for name in exceptions(SOURCES) if not name.startswith("_")}
    assert found - TESTING <= {name for name in dir(asyncpool) if not name.startswith("_")}
    assert found >= {"PoolError", "JournalError", "RemoteError"} | TESTING


@pytest.mark.parametrize("level", LEVELS)
def test_the_page_has_all_messages_of_a_level_and_no_others(level: str) -> None:
    found = differences(logged(SOURCES, level), quoted(PAGE, f"## Logged at {level}"))
    assert not found, "\n" + "\n".join(found)


def test_no_message_is_logged_in_another_way() -> None:
    calls = {
        ast.unparse(node)
        for source in SOURCES
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "log"
    }
    assert calls == {"log.debug", "log.info", "log.warning", "log.error"}


def test_other_messages_on_the_page_are_in_the_source() -> None:
    known = texts(SOURCES)
    quotes = quoted(PAGE, "### Other exceptions")
    assert len(quotes) > 5
    for quote in quotes:
        parts = map(re.escape, quote.split("…"))
        assert any(re.search(".*".join(parts), text, re.DOTALL) for text in known), quote


# -- The check itself --------------------------------------------------------------------------------------------------

SAMPLE = """
class _Base(ValueError): ...
class Late(_Base): ...
class Later(Late, errors.Other): ...
class _Shown(Exception): ...
class Other(asyncio.QueueFull): ...
class Plain(dict): ...

log.error(
    "pool %r: worker %d "
    "failed (occurrence %d)%s",
    name, 1, 2, "",
)
log.warning("%s: %s: stopping after %.2g s: %r", name, what, 1.0, job)
log.warning("%s failed", what)
log.info("hello")
raise Late(f"job {number} is late: {reason!r}")
"""


def test_the_check_finds_exceptions_and_messages() -> None:
    assert exceptions([SAMPLE]) == {"Late", "Later", "_Shown"}
    assert exceptions([SAMPLE, "class QueueFull(Exception): ..."]) == {"Late", "Later", "_Shown", "Other", "QueueFull"}
    assert logged([SAMPLE], "ERROR") == {"worker … failed (occurrence …)…"}
    assert logged([SAMPLE], "WARNING") == {"stopping after … s", "… failed"}
    assert "job … is late: …" in texts([SAMPLE])


def test_the_check_reads_the_first_column_below_a_heading() -> None:
    page = "# P\n\n## A\n\n| message | why |\n|---|---|\n| `one …` | `two` |\n| `B`, `C` | x |\n\n## D\n\n| `no` | |\n"
    assert quoted(page, "## A") == ["one …", "B", "C"]
    assert quoted(page, "## D") == ["no"]
    with pytest.raises(AssertionError, match="no heading"):
        quoted(page, "## E")


def test_the_check_fails_for_a_page_that_differs() -> None:
    messages = {"worker … failed (occurrence …)", "… failed", "stopping after … s"}
    assert differences(messages, ["worker … failed", "… failed", "stopping after … s"]) == []
    assert differences(messages, ["worker … failed", "… failed"]) == ["not on the page: stopping after … s"]
    assert differences(messages, ["worker", "… failed", "… failed", "stop", "gone"]) == [
        "on the page twice: … failed",
        "on the page, and the beginning of 0 messages: stop",
        "on the page, and the beginning of 0 messages: gone",
        "not on the page: stopping after … s",
    ]
    assert differences({"… failed", "… was lost"}, ["…"])[0] == "on the page, and the beginning of 2 messages: …"
