"""The command line. Verbs live in one file per group; heavy libraries are imported inside functions only."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: errors that a user can mend end with one message and exit code 2, never with a traceback."""
    from dollartune.cli.app import app
    from dollartune.errors import UserError

    try:
        app(standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped. What is done is kept; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        _click_error(error)


def _click_error(error: Exception) -> None:
    """Typer's own usage errors, as it prints them; anything else is a bug and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(int(getattr(error, "exit_code", 2)))
