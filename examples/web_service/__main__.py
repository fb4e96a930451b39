"""`python -m examples.web_service`: see `command.py`."""

from __future__ import annotations

import os
import sys

from examples.command_line import start

# Pillow reads this when it is imported. Blocks of this size return to the system when a photo is done. Smaller ones
# stay with the allocator, once for each thread, so the process would keep twice the memory of its largest photos.
os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")

if __name__ == "__main__":
    sys.exit(start("web_service"))
