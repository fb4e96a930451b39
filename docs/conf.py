"""The Sphinx configuration of the site that `make docs` builds. It needs no network, and a warning is an error."""

from __future__ import annotations

import builtins
import importlib.metadata
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger

import asyncpool

project = "asyncpool"
author = "The asyncpool developers"
copyright = author
release = importlib.metadata.version("asyncpool-toolkit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"asyncpool {release}"
html_show_sourcelink = False
pygments_dark_style = "github-dark"  # the default of the theme underlines names

# Links to headings, as viewers of Markdown make them. A link to a file that is not a page downloads the file.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]  # for the cards of the landing page

# Files at the top of the repository that a page of the site includes.
INCLUDED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}

# Docstrings have Google's sections, and mark `code` as Markdown does. It becomes a link if it is a documented name.
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

# The module of an extra has a page even if its dependency is not installed.
EXTRAS = {"dask": "distributed", "prometheus": "prometheus_client", "otel": "opentelemetry"}
exclude_patterns += [f"api/{name}.rst" for name in EXTRAS if find_spec(f"asyncpool.{name}") is None]
autodoc_mock_imports = [needs for needs in EXTRAS.values() if find_spec(needs) is None]

# Each of our names in a signature or under "Raises:" must be documented.
nitpicky = True
nitpick_ignore = [("py:exc", name) for name in dir(builtins)]
nitpick_ignore_regex = [
    ("py:obj", r"(?s).*"),  # not all code in a docstring is one of our names
    ("py:class", r"(?!asyncpool\.).*"),  # types of other packages
    ("py:class", r"asyncpool\..*\.(Job|Value|Item|Resource|Handler|Stream)?T(_co|_contra)?"),
    ("py:class", r"asyncpool\.(.*\.)?_\w+.*"),  # private bases
]


def setup(app: Sphinx) -> None:
    """Connect the functions below. Those for docstrings run before napoleon, which has the default priority."""
    app.connect("autodoc-process-docstring", mark_examples, priority=400)
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)
    app.connect("autodoc-process-signature", skip_constructor)
    app.connect("source-read", rewrite_page_links)
    app.connect("include-read", rewrite_included_links)
    app.connect("env-check-consistency", check_all_names)


def mark_examples(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Mark indented code in a docstring as a literal block, which reStructuredText does not recognize otherwise."""
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
    """Keep the description of an attribute whole. Napoleon takes what its first line has before a colon as a type."""
    if what in ("attribute", "data", "property") and lines:
        before, colon, after = lines[0].partition(": ")
        if colon:
            lines[:1] = [before + ":", after]


def skip_constructor(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Hide a constructor that takes private types. Pools and stores create such objects, not users."""
    is_private = re.search(r"\basyncpool\.(\w+\.)*_", signature or "") is not None
    return ("", None) if what == "class" and is_private else None


def rewrite_page_links(app: Sphinx, document: str, source: list[str]) -> None:
    """Rewrite the links of a page."""
    folder = (app.srcdir / document).parent
    source[0] = rewrite_links(app, source[0], folder, folder)


def rewrite_included_links(app: Sphinx, file: Path, parent: str, source: list[str]) -> None:
    """Rewrite the links of a file that a page includes. They are relative to the file, not to the page."""
    source[0] = rewrite_links(app, source[0], (app.srcdir / file).parent, app.srcdir)


def rewrite_links(app: Sphinx, text: str, folder: Path, page_folder: Path) -> str:
    """Make links that work in the repository work on the site too, where MyST does not.

    A file that a page includes becomes that page. Other Markdown files that are not pages are downloads, as other files
    are. Folders cannot be, so a link to one becomes its text. `folder` is that of the file that has the text,
    `page_folder` that of the page which shows it.
    """
    root = app.srcdir.parent

    def rewritten(link: re.Match[str]) -> str:
        words, target, anchor = link.groups()
        file = Path(os.path.normpath(folder / target))
        if file.is_dir():
            return words
        if not file.is_file():
            return link[0]  # MyST warns about it
        if file.parent == root and file.name in INCLUDED:
            file = app.srcdir / INCLUDED[file.name]
        prefix = "path:" if file.suffix == ".md" and not file.is_relative_to(app.srcdir) else ""
        return f"[{words}]({prefix}{os.path.relpath(file, page_folder)}{anchor})"

    return re.sub(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*|)\)", rewritten, text)


def check_all_names(app: Sphinx, environment: BuildEnvironment) -> None:
    """Warn about each public name that no page documents. A warning is an error."""
    documented = environment.domains.python_domain.objects
    for name in asyncpool.__all__:
        if f"asyncpool.{name}" not in documented:
            getLogger(__name__).warning("asyncpool.%s is public, but no page in docs/api documents it", name)
