"""How Sphinx makes the site of these pages: `make docs`. It needs no network, and a warning is an error."""

from __future__ import annotations

import builtins
import importlib.metadata
import re
from importlib.util import find_spec
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger

import asyncpool

project = "asyncpool"
author = "The asyncpool developers"
copyright = author
release = importlib.metadata.version("asyncpool-toolkit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"asyncpool {release}"
html_show_sourcelink = False
pygments_dark_style = "github-dark"  # the default of the theme underlines names

# Links to headings, as viewers of Markdown make them. A link to a file that is no page, such as a test, gives the file.
myst_heading_anchors = 4

# The docstrings have Google's sections, and write `code` as Markdown does: a link, if it is a name that we document.
default_role = "py:obj"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_type_aliases = {
    "ErrorFilter": "asyncpool.ErrorFilter",
    "Observer": "asyncpool.Observer",
    "Workers": "asyncpool.scaling.Workers",
}
maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# Modules of extras have a page if they are there, also where what they need is not installed.
EXTRAS = {"dask": "distributed", "prometheus": "prometheus_client", "otel": "opentelemetry"}
exclude_patterns += [f"api/{name}.rst" for name in EXTRAS if find_spec(f"asyncpool.{name}") is None]
autodoc_mock_imports = [needs for needs in EXTRAS.values() if find_spec(needs) is None]

# Each name of ours in a signature or under "Raises:" must be documented.
nitpicky = True
nitpick_ignore = [("py:exc", name) for name in dir(builtins)]
nitpick_ignore_regex = [
    ("py:obj", r"(?s).*"),  # not all code in a docstring is a name of ours
    ("py:class", r"(?!asyncpool\.).*"),  # types of others, whose pages are not here
    ("py:class", r"asyncpool\..*\.(Job|Value|Item|Resource|Handler)?T(_co|_contra)?"),
    ("py:class", r"asyncpool\..*\._\w+"),  # private bases
]


def setup(app: Sphinx) -> None:
    """Register what the docstrings need before napoleon reads them."""
    app.connect("autodoc-process-docstring", mark_examples, priority=400)
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)
    app.connect("autodoc-process-signature", skip_constructor)
    app.connect("source-read", give_files)
    app.connect("env-check-consistency", check_all_names)


def mark_examples(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Make indented code in a docstring what it is in Markdown, a literal block: reStructuredText wants it marked."""
    marked: list[str] = []
    is_code = False
    for number, line in enumerate(lines):
        if re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line):
            marked += lines[number:]
            break
        if line.startswith("    ") and not is_code:
            is_code = True
            marked += ["::", ""]
        elif line and not line.startswith("    "):
            is_code = False
        marked.append(line)
    lines[:] = marked


def keep_sentences(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Keep a sentence about an attribute whole: napoleon takes what is before a colon in its first line for a type."""
    if what in ("attribute", "data", "property") and lines:
        before, colon, after = lines[0].partition(": ")
        if colon:
            lines[:1] = [before + ":", after]


def skip_constructor(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Hide a constructor whose arguments are private to the package: pools and stores create such objects."""
    is_private = re.search(r"\basyncpool\.(\w+\.)*_", signature or "") is not None
    return ("", None) if what == "class" and is_private else None


def give_files(app: Sphinx, document: str, source: list[str]) -> None:
    """Make links to the rest of the repository work, where MyST does not by itself.

    A Markdown file that is no page of the site is given as other files are. A folder cannot be: its name stays as text.
    """

    def rewritten(link: re.Match[str]) -> str:
        text, target = link.groups()
        if (app.srcdir / target).is_dir():
            return text
        return f"[{text}](path:{target})" if target.endswith(".md") else link[0]

    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#\s]+)\)", rewritten, source[0])


def check_all_names(app: Sphinx, environment: BuildEnvironment) -> None:
    """Warn, which is an error, of each public name that no page documents."""
    documented = environment.domains.python_domain.objects
    for name in asyncpool.__all__:
        if f"asyncpool.{name}" not in documented:
            getLogger(__name__).warning("asyncpool.%s is public, and in no page of docs/api", name)
