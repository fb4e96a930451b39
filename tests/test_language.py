"""All text of the project is plain technical English: no phrase of a list of unidiomatic ones.

The list has what can be found without understanding the sentence. What it finds is in docstrings, comments and string
literals; names are not checked.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.markdown import ROOT

SUFFIXES = {".md", ".py", ".rst"}


def checked() -> list[Path]:
    """Return the files that are checked: all with prose, except this one, which quotes what it forbids."""
    folders = [ROOT / name for name in ("asyncpool", "benchmarks", "docs", "examples", "tests")]
    files = [*ROOT.glob("*.md"), *(file for folder in folders for file in folder.rglob("*"))]
    return [
        file
        for file in sorted(files)
        if file.suffix in SUFFIXES and "_build" not in file.parts and file != Path(__file__)
    ]


CHECKED = checked()


@dataclass(frozen=True)
class Rule:
    """A phrase that is not used, and what to write instead."""

    pattern: str
    """A regular expression for whole words, in any case. Each space in it stands for any white space."""
    instead: str
    found: tuple[str, ...]
    """Texts in which the phrase is."""
    fine: tuple[str, ...] = ()
    """Texts that no rule may find."""
    is_any_case: bool = field(default=True, kw_only=True)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        pattern = rf"(?<!\w)(?:{self.pattern})(?!\w)".replace(" ", r"\s+")
        return re.finditer(pattern, text, re.IGNORECASE if self.is_any_case else 0)


RULES = [
    # Modals, and words out of use.
    Rule("shall", '"must", "should", or the verb alone', ("results shall stream out", "It shall not.")),
    Rule("for ever", '"indefinitely", "permanently" or "without limit"', ("waits for ever", "for\n    ever")),
    Rule("anew", '"again"', ("measures anew",)),
    Rule("for good(?! reason)", '"permanently"', ("failed for good",), ("for good reason",)),
    Rule("under way", '"in progress"', ("a replay under way",)),
    Rule("dear", '"expensive"', ("A connection is dear to make.",)),
    Rule("of late", '"recently"', ("were needed of late",), ("of later jobs",)),
    Rule("as ever", '"as usual"', ("count as ever",), ("as every job",)),
    # Passive riddles.
    Rule(
        "(?:is|are|was|were|be|been|being) told|told of",
        '"is notified", "is reported", "is logged"; or name who reports it',
        ("a program is told where", "to be told of each failure", "failures are told"),
        ("what it tells its policy",),
    ),
    Rule(
        "(?:is|are|was|were|be|been|being) looked at",
        '"is checked", "is read"',
        ("It is looked at when a worker takes the job.",),
        ("the figures that it looked at",),
    ),
    Rule(
        "To be (?:asked|called|entered|made|used)",
        'an imperative: "Call it ...", "Enter it ..."',
        ("To be called on the loop.",),
        ("it needs to be called",),
        is_any_case=False,
    ),
    # Who does it.
    Rule(
        r"Whoever|(?<=[:;]\s)whoever",
        'the actor: "a caller that ...", "code that ..."',
        ("Whoever makes room calls it.", "Done. Whoever reads", "twice: whoever waits"),
        ("Notify whoever waits for jobs.",),
        is_any_case=False,
    ),
    Rule(
        "he|him|himself|his",
        '"they", "it", or the noun: "the caller", "the reader"',
        ("tells him of it", "his loop", "He waits."),
        ("the history", "this"),
    ),
    Rule(
        "the other side",
        '"the backend" or "the server"',
        ("what the other side bears", "on the other\n    side"),
        ("the other sides", "on the other hand"),
    ),
    Rule("innocent callers?", '"another task", "the waiting task"', ("raised to an innocent caller",)),
    # Counting.
    Rule(
        "so (?:many|much)(?! (?:as|that))",
        '"this many", "that many", or the name of the number',
        ("after so many seconds", "by so\nmuch"),
        ("so many that the queue is full",),
    ),
    Rule("of such", '"(occurrence n)"; or name the things', ("(number 4 of such)",), ("of suchlike",)),
    # Verbs and nouns that mean something else, or need a guess.
    Rule(
        "bears?|bore|borne|bearing",
        '"can take", "can handle", "accepts"',
        ("bears twenty at a time", "what it can bear"),
        ("forbearing", "bearer"),
    ),
    Rule(
        "(?:stands?|stood|standing) (?:above|below|between|here|in|there)",
        '"is below", "is in", "see ..."',
        ("which stands below", "the table stands in docs/"),
        ("E stands for error", "it stands still"),
    ),
    Rule(
        "which (?:is|are|was|were) no(?! (?:longer|later|less|more))",
        '"which is not a ..."',
        ("which is no fault", "which\nare no jobs"),
        ("which is no longer open", "which is not"),
    ),
    Rule("(?:has|have|had) none", '"does not have one"', ("a pool that has none",), ("if there is none",)),
    Rule(
        "wait(?:s|ed|ing)? for a time",
        '"wait for a deadline", "are delayed"',
        ("jobs that wait for a time",),
        ("waits for a timer",),
    ),
    Rule(
        "(?:comes?|came|coming) to (?:an|its|the|their) end",
        '"completes", "finishes", "stops"',
        ("the pool comes to its end",),
        ("reads to its end",),
    ),
    # Jokes and personifications as terms.
    Rule(r"doom\w*", '"cancel", "request_cancel"', ("the doom of a job", "doomed", "a doom")),
    Rule("bury|buries|buried|burying", '"drop_tombstone", "remove"', ("buries the dead", "to bury it")),
    Rule("doz(?:e|es|ed|ing)", '"sleep"', ("the scaler dozes", "dozing"), ("a dozen",)),
    Rule("rous(?:e|es|ed|ing)", '"wake"', ("is roused by a job", "rouse it"), ("arouse",)),
    Rule(r"letterbox(?:es)?|letter box(?:es)?", '"DeadLetterWriter"', ("the letterbox",)),
    Rule("knock(?:s|ed|ing)?", '"call", "request"', ("who knocks",), ("knockout",)),
]


@dataclass(frozen=True)
class Text:
    """A piece of prose, and the line on which it begins."""

    line: int
    text: str


def prose_of(path: Path) -> list[Text]:
    """Return the comments, docstrings and string literals of a Python file, or the whole of another."""
    source = path.read_text(encoding="utf-8")
    return [*comments(source), *strings(source)] if path.suffix == ".py" else [Text(1, source)]


def comments(source: str) -> list[Text]:
    """Return the comments of a module. Lines that follow each other are one comment: a phrase can go over their end."""
    found: list[Text] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#")
        if found and found[-1].line + found[-1].text.count("\n") + 1 == line:
            found[-1] = Text(found[-1].line, f"{found[-1].text}\n{text}")
        else:
            found.append(Text(line, text))
    return found


def strings(source: str) -> list[Text]:
    """Return the string literals of a module, docstrings included. Literals that follow each other are one string."""
    found: list[Text] = []
    parts: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):  # a whole comes before its parts
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            constants = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found.append(Text(node.lineno, "".join(map(str, constants))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            found.append(Text(node.lineno, node.value))
    return found


def complaints(path: Path) -> list[str]:
    """Return what is to be written differently in a file: where, the phrase, and what to write instead."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    found: list[tuple[int, str]] = []
    for piece in prose_of(path):
        for rule in RULES:
            for match in rule.finditer(piece.text):
                line = piece.line + piece.text.count("\n", 0, match.start())
                phrase = " ".join(match[0].split())
                found.append((line, f'{name}:{line}: "{phrase}": write {rule.instead}'))
    return [text for _, text in sorted(found)]


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_text_is_plain_english(path: Path) -> None:
    found = complaints(path)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.pattern)
def test_a_rule_finds_its_phrase(rule: Rule) -> None:
    for text in rule.found:
        assert len(list(rule.finditer(text))) == 1, text


@pytest.mark.parametrize("text", [text for rule in RULES for text in rule.fine])
def test_plain_english_breaks_no_rule(text: str) -> None:
    assert [rule.pattern for rule in RULES if list(rule.finditer(text))] == []


def test_the_check_reads_comments_docstrings_and_strings_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        '''"""First line.

This stands below.
"""

# It waits for
# ever, and then on.


def shall(him: int) -> str:  # measures anew
    """Return what the
    other side takes.
    """
    "buried"
    message = (
        f"{him} seconds, "
        f"so many {'dear' + str(him)}"
    )
    return message + "for good"
''',
        encoding="utf-8",
    )
    lines = [complaint.partition(": write ")[0] for complaint in complaints(path)]
    assert lines == [
        'sample.py:3: "stands below"',
        'sample.py:6: "for ever"',
        'sample.py:10: "anew"',
        'sample.py:11: "the other side"',
        'sample.py:14: "buried"',
        'sample.py:16: "so many"',  # of a string in several parts, the line is that of the first
        lines[6],
        'sample.py:19: "for good"',
    ]
    assert lines[6].endswith('"dear"')  # Python 3.11 gives the line of the whole f-string, later ones that of the part
    assert all(": write " in complaint for complaint in complaints(path))


def test_the_check_reads_markdown(tmp_path: Path) -> None:
    path = tmp_path / "sample.md"
    path.write_text("# Title\n\nA limit of all jobs,\nwhich is\nno fault.\n", encoding="utf-8")
    assert complaints(path) == ['sample.md:4: "which is no": write "which is not a ..."']


def test_the_check_covers_the_package_and_its_documents() -> None:
    names = {str(path.relative_to(ROOT)) for path in CHECKED}
    assert {"asyncpool/pool.py", "asyncpool/_core/dispatch.py", "asyncpool/testing/runner.py"} <= names
    assert {"docs/architecture.md", "docs/benchmarks/scaling.md", "README.md", "CONTRIBUTING.md"} <= names
    assert {"benchmarks/report.py", "examples/crunch.py", "tests/laws/witness.py"} <= names
