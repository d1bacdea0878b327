"""Whether the hub can be asked, and how its libraries are told where it cannot."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def without_waiting(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, libraries look for a model or a data set in the hub's cache alone where the hub cannot be asked: its
    client would try for 23 seconds per file, of which they look for a dozen, and print each try.

    Args:
        path: what is looked for; where it lies here, nobody is asked.
    """
    if Path(path).exists() or hub_answers():
        yield
        return
    from huggingface_hub import constants

    # The switch of the client itself: not all that ask it take a setting of the call (data sets' cards).
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def hub_answers() -> bool:
    """Whether a connection to the hub can be made; asked once a process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if getproxies().get(address.scheme):  # a proxy reaches what this machine cannot
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        # Five seconds: a slow network answers within one, and a machine without any fails at once or never.
        with socket.create_connection((address.hostname or "", port), timeout=5):
            return True
    except OSError:
        return False
