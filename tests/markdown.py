"""What can be run in the documents: their fenced blocks, which program is in them, and what it should print."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *PAGES,
    *sorted((ROOT / "examples").rglob("README.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    document: Path
    line: int
    language: str
    text: str
    output: str | None
    """The text of the ```text block that follows, with nothing between them."""
    files: dict[str, str] = field(repr=False)
    """The files that the document has shown above, by name."""

    @property
    def place(self) -> str:
        """Its file and line: `tutorial.md:12`."""
        return f"{self.document.name}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The name in its first line, if that is a comment with the name of a file: `# shop.py`, `# pytest.ini`."""
        named = re.match(r"# ([\w/-]+\.(?:py|ini|toml))\n", self.text)
        return named[1] if named else None


@dataclass(frozen=True)
class Command:
    """A line of a block of commands, and the output that is shown for it."""

    block: Block
    words: list[str]
    output: str

    @property
    def place(self) -> str:
        """Its file, its line and its words."""
        return f"{self.block.place}:{' '.join(self.words)}"


def blocks(document: Path) -> Iterator[Block]:
    """All fenced blocks of a document."""
    tokens = MarkdownIt().parse(document.read_text(encoding="utf-8"))
    files: dict[str, str] = {}
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "fence":
            has_output = following is not None and following.type == "fence" and following.info == "text"
            output = following.content if has_output else None
            assert token.map is not None
            block = Block(document, token.map[0] + 1, token.info, token.content, output, dict(files))
            if block.file_name is not None:
                files[block.file_name] = block.text
            yield block


def commands(document: Path) -> Iterator[Command]:
    """All commands of a document: each line of a ```sh block, each line after `$` of a ```console block."""
    for block in blocks(document):
        if block.language == "sh":
            yield from (Command(block, words, "") for line in block.text.splitlines() if (words := _words(line)))
        elif block.language == "console":
            before, *entered = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
            assert not before, f"{block.place} must begin with a command: $ ..."
            for text in entered:
                line, _, output = text.partition("\n")
                yield Command(block, _words(line), output)


def sample(document: Path, command: str) -> set[str]:
    """Return the lines, without their figures, of the first ```text block after the command in a ```console block.

    A test that runs the command anyway uses it to check that the document shows lines that the command prints.
    """
    is_after = False
    for block in blocks(document):
        is_after = is_after or (block.language == "console" and block.text.startswith(f"$ {command}\n"))
        if is_after and block.language == "text":
            return {without_figures(line) for line in block.text.splitlines() if line != "..."}
    raise LookupError(f"{document.name} shows no output of {command!r}")


def without_figures(text: str) -> str:
    """Replace each number by 0, for output that varies from run to run."""
    return re.sub(r"\d+([.,]\d+)*", "0", text)


def _words(line: str) -> list[str]:
    return shlex.split(line, comments=True)
