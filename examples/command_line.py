"""What the commands of the examples share: how they start, how they refuse, what they print."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import NoReturn

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "Parser", "printable", "start"]

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def start(program: str) -> int:
    """Run `main()` of a program's `command.py`, and return its exit status.

    It is imported here, so that a missing package and an early Ctrl+C end in a sentence too.
    """
    try:
        command = importlib.import_module(f"examples.{program}.command")
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "examples":
            raise
        print(
            f"{program}: error: the package {error.name!r} is missing; install what the examples need by "
            "python3 -m pip install -e '.[examples]' in the project's folder (asyncpool-toolkit[examples])",
            file=sys.stderr,
        )
        return USAGE
    return int(command.main())


class Parser(argparse.ArgumentParser):
    """Refuses what makes no sense in one sentence."""

    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage text before it."""
        self.exit(USAGE, f"{self.prog}: error: {printable(message)} (--help tells what there is)\n")


def printable(text: str) -> str:
    """The text without what a terminal could take for commands: names and addresses may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in text)
