"""The files of the page, read when this module is imported: they are small, and a request must not read a disk."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

__all__ = ["ASSETS", "Asset"]


class Asset(NamedTuple):
    """A file of the page."""

    content_type: str
    body: bytes


_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_FOLDER = files("asyncpool.dashboard") / "static"

ASSETS: Mapping[str, Asset] = {name: Asset(kind, (_FOLDER / name).read_bytes()) for name, kind in _TYPES.items()}
"""By name."""
