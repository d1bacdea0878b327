"""One way of writing a file whole."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from dollartune.files import write_atomically


def test_a_write_that_breaks_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"first")

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folders_are_made_and_the_file_is_as_open_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "a" / "b" / "file", b"x", durable=False)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "plain", tmp_path / "a" / "b" / "file")]
    assert modes[0] == modes[1]


def test_many_writers_never_show_a_half(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([i]) * 100_000 for i in range(4)]
    write_atomically(path, contents[0])
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents * 5]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
