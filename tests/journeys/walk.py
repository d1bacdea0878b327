"""Walks the command line as a person does: in processes of their own, in a folder that was empty, reading what is printed."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from commands import Command

LONGEST_SECONDS = 1500
"""Of one command: only a command that hangs takes so long, whatever else the machine does."""


@dataclass
class Walker:
    """Somebody in a folder."""

    folder: Path
    heard: str = ""
    """What the last command said."""
    walked: list[str] = field(default_factory=list)

    def does(self, command: str, expect: int = 0) -> str:
        """Runs a command and returns what it printed.

        Args:
            command: as typed, beginning with `dollartune`.
            expect: its exit status.
        """
        words = shlex.split(command)
        assert words[0] == "dollartune", command
        environment = {"DOLLARTUNE_CACHE": str(self.folder / ".cache"), "COLUMNS": "100"}
        code, out, error = Command(*words[1:], folder=self.folder, environment=environment).ended(LONGEST_SECONDS)
        self.heard = out + error
        self.walked.append(command)
        assert "Traceback" not in self.heard, f"{command}\n{self.heard}"
        assert code == expect, f"{command}: {code}\n{self.heard}"
        if expect == 2:
            assert error.startswith(("error: ", "Usage: ")), error
        return self.heard

    def follows(self, **stands_for: str) -> list[str]:
        """Runs every command that the last one printed as the next, and returns them.

        Args:
            stands_for: placeholders of a printed command -> what stands for them here.
        """
        printed = next_commands(self.heard)
        assert printed, f"a dead end: nothing is said of what to do next\n{self.heard}"
        for command in printed:
            for word, value in stands_for.items():
                command = command.replace(word, value)
            if " serve " not in command:  # runs until it is stopped; tests/serve starts one
                self.does(command)
        return printed


def next_commands(text: str) -> list[str]:
    """The commands that a text tells its reader to run."""
    found = re.findall(r"[Nn]ext: (dollartune .+)$", text, re.M)
    after = text.partition("\nnext:\n")[2]
    return [*found, *re.findall(r"^  (dollartune .+)$", after, re.M)]
