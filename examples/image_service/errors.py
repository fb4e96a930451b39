"""Why an image failed, as exceptions whose messages can be shown to the user as they are.

ImageServiceError
├── BadUrl                   nothing that can be downloaded
├── DownloadFailed           no connection, no 200, not the whole body
│   ├── DownloadTimedOut
│   └── DownloadTooLarge
├── NotAnImage               the bytes are something else
├── ImageDamaged             an image, but it cannot be decoded to its end
├── ImageTooLarge            too wide, or too many pixels
└── OutputError              the thumbnail cannot be written
"""

from __future__ import annotations

__all__ = [
    "BadUrl",
    "DownloadFailed",
    "DownloadTimedOut",
    "DownloadTooLarge",
    "ImageDamaged",
    "ImageServiceError",
    "ImageTooLarge",
    "NotAnImage",
    "OutputError",
]


class ImageServiceError(Exception):
    """The root. `str(error)` is a short sentence that does not repeat which image it was."""


class BadUrl(ImageServiceError):
    """The address is not one of an http or https server."""


class DownloadFailed(ImageServiceError):
    """The server could not be reached, did not answer 200, or broke off. `status` is its answer, if any."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return f"download failed: {self.reason}"


class DownloadTimedOut(DownloadFailed):
    """The download was not done in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done after {seconds:g} s")
        self.seconds = seconds
        self.args = (seconds,)


class DownloadTooLarge(DownloadFailed):
    """The file has more bytes than are allowed: more are not read, whatever the server promised."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the file is larger than {max_bytes / 1024**2:.3g} MB")
        self.max_bytes = max_bytes
        self.args = (max_bytes,)


class NotAnImage(ImageServiceError):
    """The bytes are not an image in one of the formats that are read."""


class ImageDamaged(ImageServiceError):
    """The image breaks off, or its data contradict themselves."""


class ImageTooLarge(ImageServiceError):
    """The image has more pixels than are allowed: it is refused by its header, before anything is decoded."""


class OutputError(ImageServiceError):
    """The output folder or a file in it cannot be written."""
