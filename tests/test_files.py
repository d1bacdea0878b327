"""One way of writing a file whole."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.files import discard_folder, drafted, lock, write_atomically, write_json


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


@pytest.mark.parametrize("place", ["new", "empty", "current", "link", "dangling"])
def test_a_draft_becomes_a_folder_that_is_new_or_there_and_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = tmp_path / "out"
    if place in ("empty", "current"):
        folder.mkdir()
    if place in ("link", "dangling"):
        folder.symlink_to(tmp_path / "elsewhere")
    if place == "link":
        (tmp_path / "elsewhere").mkdir()
    if place == "current":
        monkeypatch.chdir(folder)
        folder = Path()
    whole = folder.resolve()
    with drafted(folder) as draft:
        (draft / "config.json").write_text("{}")
        (draft / "part").mkdir()
        (draft / "part" / "weights").write_bytes(b"x")
    assert sorted(str(path.relative_to(whole)) for path in whole.rglob("*")) == ["config.json", "part", "part/weights"]
    assert (folder / "config.json").read_text() == "{}", "also by the path that was given"
    assert stat.S_IMODE(whole.stat().st_mode) & 0o055 == 0o055
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "elsewhere"}


@pytest.mark.parametrize("there", [False, True])
def test_a_draft_that_fails_leaves_nothing(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    with pytest.raises(ZeroDivisionError), drafted(folder) as draft:
        write_json(draft / "config.json", {"seconds": 1 / 0 if not (draft / "model").mkdir() else 0})
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if there else [])


def test_a_draft_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for place, why in ((tmp_path, "not empty"), (tmp_path / "file", "a file")):
        with pytest.raises(UserError, match=f"is {why}") as refused, drafted(place):
            pass
        assert "--out" in str(refused.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_has_no_number_that_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"auc": float("nan"), "inside": [{"loss": float("inf")}, (1.5, 2)]})
    assert json.loads((tmp_path / "file").read_bytes()) == {"auc": None, "inside": [{"loss": None}, [1.5, 2]]}


def test_a_deletion_that_is_killed_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "adapter"

    def filled() -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(b"x")

    def killed(path: Path, **_: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt

    filled()
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            discard_folder(folder)
    assert not folder.exists()
    filled()
    discard_folder(folder)
    assert not list(tmp_path.iterdir()), "what the kill left, too"


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with open(tmp_path / "file", "ab") as first, open(tmp_path / "file", "ab") as second:
        assert lock(first)
        assert not lock(second)
    with open(tmp_path / "file", "ab") as third:
        assert lock(third)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_posix_has_two_errors_for_a_lock_that_another_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def taken(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", taken)
    with open(tmp_path / "file", "ab") as file:
        assert not lock(file)


def test_a_file_system_without_locks_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with open(tmp_path / "file", "ab") as file:
        assert lock(file)
