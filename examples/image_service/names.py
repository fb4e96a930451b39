"""A file name out of whatever a URL says.

The name is only ever one component, of letters, digits, `_`, `-` and `.`, so that joined to a folder it is
a file in that folder. That two URLs do not get the same file is seen to in `output.py`.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote, urlsplit

__all__ = ["PHOTO_SUFFIXES", "stem_of"]

PHOTO_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mpo"))
"""How the names of photos end that the service can read."""

_MAX_BYTES = 100  # of 255 that file systems allow: with room for a hash and a suffix, and still readable
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # not files, on Windows


def stem_of(url: str) -> str:
    """Return a safe file name, without a suffix, that looks like the last part of the URL's path.

    `https://example.com/a/my%20photo.png?v=2` gives `my_photo`. Any string is taken; one of which nothing
    is left gives `image`.
    """
    try:
        path = urlsplit(url).path
    except ValueError:  # such as an unclosed [ of an IPv6 address
        path = url
    last = unquote(path, errors="replace").replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    if not dot or f".{suffix.lower()}" not in PHOTO_SUFFIXES:
        stem = last
    stem = re.sub("\0+", "_", "".join(map(_safe, unicodedata.normalize("NFC", stem))))
    # No hidden files, no options to other programs; and Windows drops dots at the end.
    stem = stem.encode()[:_MAX_BYTES].decode(errors="ignore").lstrip(".-").rstrip(".")
    if _DEVICES.match(stem):
        stem = f"_{stem}"
    return stem if stem.strip("_") else "image"


def _safe(character: str) -> str:
    # Letters, marks and numbers of any script. Zero bytes stand for all else: a run of them becomes one "_".
    return character if character in "_-." or unicodedata.category(character)[0] in "LMN" else "\0"
