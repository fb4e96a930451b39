"""`python -m examples.email_campaign`: see `command.py`."""

from __future__ import annotations

import sys


def _main() -> int:
    # Imported here, so that a missing package and an early Ctrl+C end in a sentence too.
    try:
        from examples.email_campaign.command import main
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "examples":
            raise
        print(
            f"email_campaign: error: the package {error.name!r} is missing; install what the examples need by "
            "python3 -m pip install -e '.[examples]' in the project's folder (asyncpool-toolkit[examples])",
            file=sys.stderr,
        )
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(_main())
