"""A contestant's process: reads what to do from its argument, then commands from standard input, a JSON line each.

It says one line when it is ready and one per command: seconds, tokens and peak bytes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

import torch


class Channel:
    """Lines from and to whoever started this process; whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        self.out.write(json.dumps(facts) + "\n")

    def hear(self) -> tuple[str, Any]:
        """The next command; `end` when there will be none."""
        line = sys.stdin.readline()
        command, value = json.loads(line) if line else ("end", None)
        return command, value


class TrialCost:
    """Lets a training run go on for as many steps as are asked for, and reports what they took.

    Both sides call `stepped` after each optimizer step, from their own callbacks. The first step is for warming up.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel, self.left, self.tokens, self.warm, self.last = channel, 1, 0, False, ""

    def stepped(self) -> bool:
        """Whether to train on."""
        self.left -= 1
        if self.left > 0:
            return True
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.warm:
            seconds = time.perf_counter() - self.started
            self.channel.say(seconds=seconds, tokens=self.tokens - self.before, peak_bytes=peak_bytes())
        else:
            self.warm = True
            self.channel.say(ready=True)
        self.last, self.left = self.channel.hear()
        self.before, self.started = self.tokens, time.perf_counter()
        return self.last == "steps"

    def fail(self, error: Exception) -> None:
        """Answers that it cannot be done, until something else is asked for."""
        while True:
            self.channel.say(error=f"{type(error).__name__}: {error}"[:200])
            self.last, _ = self.channel.hear()
            if self.last != "steps":
                return


def peak_bytes() -> int:
    """Most memory that this process ever had, on the GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    spec = json.loads(sys.argv[1])
    channel = Channel()
    if spec["task"] == "curve":
        import curve

        channel.say(ready=True)
        if channel.hear()[0] == "run":
            channel.say(**curve.both())
        return
    import ours
    import peers

    side = ours if spec["side"] == "ours" else peers
    getattr(side, spec["task"])(spec, channel)


if __name__ == "__main__":
    main()
