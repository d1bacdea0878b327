"""The command line. Verbs live in one file per group; heavy libraries are imported inside functions only."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

SPINS = "3000"
"""Rounds for which a thread of PyTorch on a processor waits for the others by turning round, before it sleeps. As it comes it
turns for milliseconds: where other programs use the cores too, a pass of a small model then takes three to five times as long."""


def main() -> None:
    """Entry point: errors that a user can mend end with one message and exit code 2, never with a traceback."""
    if sys.argv[1:] == ["--version"]:  # asked by scripts, and often: without the libraries of a command line
        from dollartune import __version__

        print(f"dollartune {__version__}")
        sys.exit(0)
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when PyTorch is imported
    from dollartune.cli.app import app
    from dollartune.errors import UserError

    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C into the code 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        # 128 + SIGINT, as shells have it.
        code = 130
    # `dollartune results | head`: 141 is what a shell reports for a process that SIGPIPE ended.
    except BrokenPipeError:
        sys.exit(141)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        print(f"error: {_wrong_place(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        _click_error(error)
    if code == 130:
        print("\nstopped. What is done is kept; the same command goes on from here.", file=sys.stderr)
    sys.exit(code or 0)


def _wrong_place(error: OSError) -> str:
    """What is wrong with a path that somebody gave, which the verb that used it did not foresee."""
    from pathlib import Path

    if error.filename is None:
        return str(error)
    why = {
        IsADirectoryError: "is a folder; a file is wanted",
        PermissionError: "may not be used here: no permission",
    }.get(type(error), "cannot be a folder: there is a file of that name")
    path = Path(os.fsdecode(error.filename))
    if not isinstance(error, IsADirectoryError | PermissionError):
        # what was to lie in it is named by the error, and the file that is in the way was named by the user
        path = next((one for one in (path, *path.parents) if one.is_file()), path)
    return f"{str(path)!r} {why}."


def _click_error(error: Exception) -> NoReturn:
    """Typer's own usage errors, as it prints them; anything else is a bug and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(int(getattr(error, "exit_code", 2)))
