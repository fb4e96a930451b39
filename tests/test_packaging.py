"""The description on the package index is README.md, changed by the substitutions in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.markdown import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOOK: dict[str, Any] = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]


def described(text: str) -> str:
    """Return the description that the build makes of a README."""
    for substitution in HOOK["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    return text


def tokens(text: str) -> Iterator[Token]:
    def flat(some: Iterable[Token]) -> Iterator[Token]:
        for token in some:
            yield token
            yield from flat(token.children or [])

    return flat(MarkdownIt().enable("table").parse(text))


def targets(text: str) -> list[str]:
    """The targets of all links and images, including those in HTML."""
    found: list[str] = []
    for token in tokens(text):
        found += [str(value) for name, value in token.attrs.items() if name in ("href", "src")]
        if token.type.startswith("html_"):
            found += re.findall(r"""(?:href|src|srcset)=["']?([^"'\s>]+)""", token.content)
    return found


def code(text: str) -> list[str]:
    return [token.content for token in tokens(text) if token.type in ("fence", "code_block", "code_inline")]


def test_the_description_is_the_readme() -> None:
    assert HOOK["fragments"] == [{"path": "README.md"}]
    assert HOOK["content-type"] == "text/markdown"
    assert "readme" in PROJECT["project"]["dynamic"]


def is_absolute(target: str) -> bool:
    """Whether a link works anywhere. Links to headings do: the package index gives headings their anchors."""
    return target.startswith(("https://", "http://", "#"))


def test_the_description_keeps_the_links_that_work_and_no_other() -> None:
    linked = targets(README)
    assert not all(is_absolute(target) for target in linked)
    assert targets(described(README)) == [target for target in linked if is_absolute(target)]


def test_the_description_keeps_all_code() -> None:
    assert code(described(README)) == code(README)


def test_a_relative_link_becomes_its_text_and_a_relative_image_is_dropped() -> None:
    text = (
        "![A plot](docs/plot.svg)\n\nSee [the `tutorial`](docs/tutorial.md#start), [below](#costs)\n"
        "or [a[0] in\nanyio](https://anyio.example/), [MIT](LICENSE), ![logo](https://logo.example/).\n"
    )
    assert described(text) == (
        "See the `tutorial`, [below](#costs)\n"
        "or [a[0] in\nanyio](https://anyio.example/), MIT, ![logo](https://logo.example/).\n"
    )
