"""What the tests of progress share."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from asyncpool.progress.displays import BarDisplay


class Screen:
    """A console whose output can be read: lines, or what a terminal of 100 columns gets."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, force_terminal=is_terminal, force_interactive=is_terminal, width=100, color_system=None
        )

    @property
    def text(self) -> str:
        return self.file.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def is_restored(self) -> bool:
        """Whether the cursor of the terminal is visible, because what hid it has shown it again."""
        return self.text.count("\x1b[?25l") == self.text.count("\x1b[?25h") > 0


class Broken(io.StringIO):
    """A file that cannot be written to, from some moment on."""

    error: BaseException | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


def draws(monkeypatch: Any) -> list[Any]:
    """Return a list that gets the figures of each draw of a bar."""
    drawn: list[Any] = []
    show = BarDisplay.show
    monkeypatch.setattr(BarDisplay, "show", lambda self, figures: (drawn.append(figures), show(self, figures))[1])
    return drawn
