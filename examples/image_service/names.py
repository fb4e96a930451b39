"""Derive a safe file name from any URL, and what to print of it.

The name is always a single component of letters, digits, `_`, `-` and `.`, so joined to a folder it is a file in that
folder. `output.py` ensures that two URLs do not get the same file.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote, urlsplit

__all__ = ["PHOTO_SUFFIXES", "shown_url", "stem_of"]

PHOTO_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mpo"))
"""The suffixes of the photos that the service can read."""

_MAX_BYTES = 100  # file systems allow 255; this leaves room for a hash and a suffix, and names stay readable
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # device names on Windows


def stem_of(url: str) -> str:
    """Return a safe file name without a suffix, based on the last part of the URL's path.

    `https://example.com/a/my%20photo.png?v=2` gives `my_photo`. Any string is accepted; if no usable character is left,
    the name is `image`.
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
    # A leading "." would hide the file, a leading "-" would look like an option, and Windows drops trailing dots.
    stem = stem.encode()[:_MAX_BYTES].decode(errors="ignore").lstrip(".-").rstrip(".")
    if _DEVICES.match(stem):
        stem = f"_{stem}"
    return stem if stem.strip("_") else "image"


def shown_url(url: str) -> str:
    """Return a URL without what can be secret, for output and logs: its user, password, query and fragment."""
    address, question, _ = url.partition("#")[0].partition("?")
    shown = f"{address}{question and '?...'}"
    try:
        parts = urlsplit(address)
        if parts.hostname and parts.port != 0:  # `port` raises if it is not a number
            return shown.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
    except ValueError:
        pass
    return shown.rpartition("@")[2]  # not a URL: where the password ends is unclear


def _safe(character: str) -> str:
    # Keep letters, marks and numbers of any script. Replace the rest by zero bytes, each run of which becomes one "_".
    return character if character in "_-." or unicodedata.category(character)[0] in "LMN" else "\0"
