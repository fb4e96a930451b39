"""The reasons for which an image fails. The messages can be shown to users as they are.

ImageServiceError
├── BadUrl                   not an http or https URL
├── DownloadFailed           no connection, a status other than 200, an incomplete body
│   ├── DownloadTimedOut
│   ├── DownloadTooLarge
│   └── ServerBusy           429 or 503
├── NotAnImage               the data is not an image
├── ImageDamaged             an image that cannot be decoded completely
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
    "ServerBusy",
]


class ImageServiceError(Exception):
    """The base class. `str(error)` is a short message that does not name the image."""


class BadUrl(ImageServiceError):
    """The address is not an http or https URL."""


class DownloadFailed(ImageServiceError):
    """The server was unreachable, did not respond with 200, or broke off.

    Args:
        reason: What happened.
        status: The status that the server sent, if any.
        is_temporary: Whether another attempt can succeed.
    """

    def __init__(self, reason: str, status: int | None = None, *, is_temporary: bool = False) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status
        self.is_temporary = is_temporary

    def __str__(self) -> str:
        return f"download failed: {self.reason}"


class DownloadTimedOut(DownloadFailed):
    """The download exceeded its time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"timed out after {seconds:g} s")
        self.seconds = seconds
        self.args = (seconds,)


class DownloadTooLarge(DownloadFailed):
    """The file exceeds the size limit. No more than the limit is read."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the file is larger than {max_bytes / 1024**2:.3g} MB")
        self.max_bytes = max_bytes
        self.args = (max_bytes,)


class ServerBusy(DownloadFailed):
    """The server responded with 429 or 503. `retry_after` is how many seconds it asks to wait; 0 if it did not say."""

    def __init__(self, reason: str, status: int, retry_after: float) -> None:
        super().__init__(reason, status, is_temporary=True)
        self.retry_after = retry_after


class NotAnImage(ImageServiceError):
    """The data is not an image in a supported format."""


class ImageDamaged(ImageServiceError):
    """The image is truncated or corrupt."""


class ImageTooLarge(ImageServiceError):
    """The image has too many pixels. It is rejected by its header, before anything is decoded."""


class OutputError(ImageServiceError):
    """The output folder or a file in it cannot be written."""
