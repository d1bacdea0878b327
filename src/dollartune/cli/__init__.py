"""The command line. Verbs live in one file per group; heavy libraries are imported inside functions only."""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

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
    from dollartune.cli.app import OutputClosed, app
    from dollartune.errors import UserError

    for stream in (sys.stdout, sys.stderr):
        # A label in Greek on a terminal of ASCII or Latin letters is written as \u03b1 rather than ending the program.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C into the code 130
        if sys.stdout is not None:  # it is None where it was closed before the start (`>&-`)
            sys.stdout.flush()  # what is short is written only now, and whoever reads it may have gone
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        # 128 + SIGINT, as shells have it.
        code = 130
    # `dollartune results | head`: 141 is what a shell reports for a process that SIGPIPE ended.
    except (OutputClosed, BrokenPipeError):
        # else Python tries once more at its end, and complains
        sys.stdout = open(os.devnull, "w", encoding="utf8")  # noqa: SIM115 - for the rest of the process
        sys.exit(141)
    except OSError as error:
        if error.errno in NO_ROOM:
            print(f"error: {_no_room(error)}", file=sys.stderr)
            sys.exit(1)
        if error.errno not in WRONG_PLACE:
            raise
        print(f"error: {_wrong_place(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        _click_error(error)
    if code == 130:
        print("\nstopped. What is done is kept; the same command goes on from here.", file=sys.stderr)
    sys.exit(code or 0)


NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_IN_THE_WAY = "cannot be a folder: there is a file of that name"
_NO_PERMISSION = "may not be used here: no permission"
WRONG_PLACE = {
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: "is a folder; a file is wanted",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "cannot be written: its file system is read-only",
    errno.ENAMETOOLONG: "is longer than a name can be here",
    errno.ELOOP: "is a link that leads back to itself",
}
"""What is wrong with a path that somebody gave, which the verb that used it did not foresee."""


def _wrong_place(error: OSError) -> str:
    if error.filename is None:
        return str(error)
    why, path = WRONG_PLACE[error.errno or 0], _path_of(error)
    if why is _IN_THE_WAY:
        # what was to lie in it is named by the error, and the file that is in the way was named by the user
        path = next((one for one in (path, *path.parents) if one.is_file()), path)
    return f"{str(path)[:300]!r} {why}."


def _no_room(error: OSError) -> str:
    where = "" if error.filename is None else f" to write {str(_path_of(error))!r}"
    return f"the disk is full: there is no room{where}. What is done is kept; make room, and the same command goes on from here."


def _path_of(error: OSError) -> Path:
    from pathlib import Path

    # of a rename the second one: the first is a name of ours
    return Path(os.fsdecode(error.filename2 or error.filename))


def _click_error(error: Exception) -> NoReturn:
    """Typer's own usage errors, as it prints them; anything else is a bug and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(int(getattr(error, "exit_code", 2)))
