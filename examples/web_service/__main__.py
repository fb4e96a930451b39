"""`python -m examples.web_service`: see `command.py`."""

from __future__ import annotations

import sys

from examples.command_line import start

if __name__ == "__main__":
    sys.exit(start("web_service"))
