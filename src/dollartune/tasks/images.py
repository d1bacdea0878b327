"""Image folders, zips of images, and lists of image files with labels."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, nearest
from dollartune.tasks.compression import open_member
from dollartune.tasks.files import READERS, file_format, require_path
from dollartune.tasks.pictures import DAMAGE, ImageBytes, oddities, open_picture, whole_file
from dollartune.tasks.rows import SPLIT_NAMES, BadRows, Row

if TYPE_CHECKING:
    from dollartune.tasks.base import SplitName

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageFile:
    """Reads one picture from a folder or a zip when it is called."""

    archive: Path
    """The folder or the zip."""
    name: str
    """Path inside it, with forward slashes."""

    def read_bytes(self) -> bytes:
        """The file as it is stored.

        Raises:
            UserError: the zip is encrypted, or compressed in a way that cannot be read.
        """
        if self.archive.is_dir():
            return (self.archive / self.name).read_bytes()
        # The process is part of the key, so that a fork opens its own.
        with open_member(self.archive, _archive(self.archive, os.getpid()), self.name) as binary:
            return binary.read()

    def __call__(self) -> Any:
        """Returns a `PIL.Image` in RGB, upright, 8 bits.

        Raises:
            UserError: the file is damaged or is no image.
        """
        return open_picture(self.read_bytes(), f"{self.name} in {self.archive}")

    def __reduce__(self) -> tuple[type[ImageBytes], tuple[str, bytes]]:
        """Pickled, it brings its content along: who reads it may have neither the folder nor the zip."""
        return ImageBytes, (self.name, self.read_bytes())


class ImageStore:
    """The images of a folder or zip, by their path inside it.

    Raises:
        UserError: there is no such place, or it is neither a folder nor a zip.
    """

    def __init__(self, source: Path) -> None:
        require_path(source)
        self.place = source
        self.names = _names(source.resolve(), source.stat().st_mtime_ns)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def find(self, name: str) -> ImageFile:
        """The image of that name.

        Raises:
            KeyError: with a message that gives the nearest name.
        """
        # Lists that were made on Windows, or by `find`.
        normal = name.replace("\\", "/").removeprefix("./")
        if normal in self.names:
            return ImageFile(self.place, normal)
        parts = PurePosixPath(normal.lstrip("/")).parts
        # Lists also name files without the folder that all of them lie in. Of several, nobody can tell which one is meant.
        ends = self.ends.get("/".join(parts), ())
        if len(ends) == 1:
            return ImageFile(self.place, ends[0])
        # Or as they lay on another machine. The whole path of a file here must stand in the list: of `dogs/7.png` and
        # `cats/7.png`, the end alone is the same.
        for start in range(1, len(parts)) if not ends else ():
            if (end := "/".join(parts[start:])) in self.names:
                return ImageFile(self.place, end)
        raise KeyError(f"no image {name!r} in {self.place.name}.{nearest(name, sorted(self.names)[:10_000])}")

    @cached_property
    def ends(self) -> Mapping[str, Sequence[str]]:
        """The last parts of each file's path, however many -> the files that end so."""
        ends: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            parts = PurePosixPath(name).parts
            for start in range(len(parts)):
                ends["/".join(parts[start:])].append(name)
        return ends


def read_image_folder(source: Path, bad: BadRows, notes: list[str]) -> dict[SplitName, list[Row]]:
    """Reads images whose folder is their label: `cats/1.png`, or `train/cats/1.png` when the splits are given.

    Args:
        source: a folder or a zip; one folder around everything is looked through.
        bad: what a damaged image, or one outside every label's folder, does.
        notes: gets a line for a split without labels, which is left out.

    Returns:
        split -> rows with `image` (an `ImageFile`) and `label`; all under `train` when no split is named.

    Raises:
        UserError: no images, or no folders to take labels from.
    """
    store = ImageStore(source)
    names = sorted(name for name in store.names if PurePosixPath(name).suffix.lower() in ENDINGS)
    if not names:
        tables = sorted(name for name in store.names if PurePosixPath(name).suffix.lower() in READERS)
        hint = (
            f"It holds {', '.join(tables[:3])}: unpack it, and name the folder or one of its files." if tables else None
        )
        raise UserError(f"{source} holds no images ({', '.join(sorted(ENDINGS))}).", hint)
    # A zip often has one folder around everything, which is no label.
    common = _common_folder(names)
    rows: dict[SplitName, list[Row]] = {}
    unlabelled = _unlabelled_splits(names, len(common))
    notes += [
        f"{source.name}/{folder} has no folders of labels: it is left out, and {left_out} rows are cut from the others"
        for left_out, folder in unlabelled.items()
    ]
    names = [name for name in names if PurePosixPath(name).parts[len(common)] not in unlabelled.values()]
    if not any(_has_label(PurePosixPath(name).parts[len(common) :]) for name in names):
        raise UserError(
            f"{source} holds images, and no folders to take their labels from, as in cats/1.png or train/cats/1.png.",
            "Sort them into one folder for each label, or name a csv beside them with their file names and labels.",
        )
    for name in names:
        parts = PurePosixPath(name).parts[len(common) :]
        split = SPLIT_NAMES.get(parts[0].lower())
        where = f"{source.name}/{name}"
        if not _has_label(parts):
            bad.report(
                where,
                "an image should lie in a folder with the name of its label, as in cats/1.png or train/cats/1.png",
            )
            continue
        # The path, not the pixels: a hundred thousand pictures would fill the memory before the first step.
        values = {"image": ImageFile(source, name), "label": parts[-2]}
        rows.setdefault(split or "train", []).append(Row(values, where))
    return rows


def _has_label(parts: Sequence[str]) -> bool:
    """Whether a path is label/file or split/label/file; anything deeper is ambiguous: the label might be either folder."""
    return len(parts) == (2 if parts[0].lower() not in SPLIT_NAMES else 3)


def _unlabelled_splits(names: Sequence[str], common: int) -> dict[SplitName, str]:
    """Validation or test -> its folder, where its pictures lie in no folders of labels, as competitions publish theirs."""
    folders: dict[str, list[int]] = defaultdict(list)
    for name in names:
        parts = PurePosixPath(name).parts[common:]
        folders[parts[0]].append(len(parts))
    return {
        split: folder
        for folder, depths in folders.items()
        if (split := SPLIT_NAMES.get(folder.lower())) not in (None, "train") and set(depths) == {2}
    }


def picture_names(place: Path) -> list[str]:
    """Names of all pictures in a folder or zip, whatever folders they lie in.

    Raises:
        UserError: there are none.
    """
    names = sorted(name for name in ImageStore(place).names if PurePosixPath(name).suffix.lower() in ENDINGS)
    if not names:
        raise UserError(f"{place} holds no images ({', '.join(sorted(ENDINGS))}).")
    return names


def is_image_name(value: Any) -> bool:
    """Whether a value of a table reads as the name of an image file."""
    return isinstance(value, str) and PurePosixPath(value).suffix.lower() in ENDINGS and "\n" not in value


LOOKED_AT = 100
"""Rows by which a column of pictures is told: enough to tell file names from texts, quick for a large table."""


def picture_column(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The column of pictures: it holds functions that load them, or names of image files; None where there is none."""
    some = rows[:LOOKED_AT]
    names = list(dict.fromkeys(name for row in some for name in row))
    brought = next((name for name in names if bring_pictures(some, name)), None)
    return brought or next((name for name in names if all(is_image_name(row.get(name)) for row in some)), None)


def bring_pictures(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether a column holds functions that load pictures, rather than names of files; some rows may have no picture."""
    return any(callable(row.get(column)) for row in rows)


def is_picture_place(path: Path) -> bool:
    """Whether a path is a folder or a zip of pictures, rather than a file of rows, which may be packed in a zip too."""
    return path.is_dir() or (path.suffix.lower() == ".zip" and file_format(path) is None)


def image_place(folder: Path) -> Path:
    """Where a data folder keeps its images: `images.zip`, `images/`, or the folder itself."""
    return next((folder / name for name in ("images.zip", "images") if (folder / name).exists()), folder)


def holds_images(source: Path) -> bool:
    """Whether a folder or zip has an image anywhere in it."""
    return any(PurePosixPath(name).suffix.lower() in ENDINGS for name in ImageStore(source).names)


MOST_DECODED, MOST_PIXELS = 2000, 200_000_000
"""Pictures of one data set, and pixels of them, that are decoded while it is read: two thousand of 300 x 300 take seconds, and as
many of a camera minutes. Of others, those are decoded whose file does not end as its format ends: so most damage shows."""


class PictureCheck:
    """Looks at every picture of a data set once, before anything is paid: what is damaged, and what will be done to others.

    Args:
        count: how many pictures there are.
        full: decode all of them, however many.
    """

    def __init__(self, count: int, full: bool = False) -> None:
        self.full, self.count = full, count
        self.pixels = 0
        """Of the pictures that were decoded."""
        self.not_decoded = 0
        self.changed: Counter[str] = Counter()

    @property
    def decodes(self) -> bool:
        """Whether the next picture is decoded."""
        return self.full or (self.count <= MOST_DECODED and self.pixels < MOST_PIXELS)

    def problem(self, picture: Any) -> str | None:
        """What is wrong with one picture (an `ImageFile`, or another function that loads one), or None."""
        decodes = self.decodes
        self.not_decoded += not decodes
        if isinstance(picture, ImageFile):
            problem, changes, pixels = _looked_at(picture, decodes, _stamp(picture))
            self.pixels += pixels
            self.changed.update(changes)
            return problem
        if not callable(picture) or not decodes:
            return None
        try:
            width, height = picture().size
        except UserError as error:
            return error.message.rstrip(".")
        except DAMAGE as error:
            return f"not a readable image ({error or type(error).__name__})"
        self.pixels += width * height
        return None

    def notes(self) -> list[str]:
        """One sentence for each thing that is done to pictures of this data set."""
        said = [f"{count} of {self.count} pictures {what}" for what, count in sorted(self.changed.items())]
        if self.not_decoded:
            said.append(f"of {self.not_decoded:,} pictures the headers and ends were looked at, not every pixel")
        return said


def _stamp(picture: ImageFile) -> int:
    path = picture.archive / picture.name if picture.archive.is_dir() else picture.archive
    return path.stat().st_mtime_ns


# One process loads a task several times (check, plan, run); a picture that has not changed is decoded once.
@lru_cache(maxsize=100_000)
def _looked_at(picture: ImageFile, decode: bool, stamp: int) -> tuple[str | None, tuple[str, ...], int]:
    """(what is wrong, what will be changed, pixels) of one picture file; `stamp` tells a file that was replaced."""
    from io import BytesIO

    from PIL import Image

    content = None
    try:
        content = picture.read_bytes()
        with Image.open(BytesIO(content)) as image:
            changes, pixels = tuple(oddities(image)), image.width * image.height
        if decode or not whole_file(content):
            open_picture(content, "it")
    except UserError as error:
        return (
            f"not a readable image ({error.message.removeprefix('it is not a readable image: ').rstrip('.')})",
            (),
            0,
        )
    except (*DAMAGE, Image.DecompressionBombError, zipfile.BadZipFile) as error:
        said = re.sub(r" <_io\.BytesIO object[^>]*>", "", str(error))
        return (
            f"not a readable image ({'the file is empty' if content == b'' else said or type(error).__name__})",
            (),
            0,
        )
    return None, changes, pixels


def content_key(picture: Any) -> str | None:
    """A hash of a picture's file; None of what has none, as pictures that code makes.

    Read once: what is cut and each adapter that is kept ask for it, and of a camera's pictures a thousand are gigabytes.
    """
    if isinstance(picture, ImageFile):
        return _hashed(picture, _stamp(picture))
    content = picture.read_bytes() if hasattr(picture, "read_bytes") else getattr(picture, "content", None)
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else None


@lru_cache(maxsize=250_000)
def _hashed(picture: ImageFile, stamp: int) -> str:
    return hashlib.sha256(picture.read_bytes()).hexdigest()


# A study reads few archives; eight leave room for splits in zips of their own, without keeping files open for ever.
@lru_cache(maxsize=8)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """An open zip, kept because reading its directory again for every image costs more than the image.

    Each process opens its own: after a fork, two processes would move one file position.
    """
    return zipfile.ZipFile(path)


@lru_cache(maxsize=16)
def _names(source: Path, modified: int) -> frozenset[str]:
    """Paths of all files under a folder or in a zip; `modified` keeps a changed zip from being answered from memory."""
    if source.is_dir():
        return frozenset(
            name
            for path in source.rglob("*")
            if path.is_file() and not _hidden(name := path.relative_to(source).as_posix())
        )
    try:
        with zipfile.ZipFile(source) as archive:
            return frozenset(
                # macOS puts a second, unreadable entry for each file under __MACOSX.
                name
                for name in archive.namelist()
                if not name.endswith("/") and not name.startswith("__MACOSX/") and not _hidden(name)
            )
    except zipfile.BadZipFile as error:
        raise UserError(f"{source} is neither a folder nor a readable zip: {error}.") from error


def _hidden(name: str) -> bool:
    """Whether a file or one of its folders is hidden: `._1.png` of macOS, `.ipynb_checkpoints`."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _common_folder(names: list[str]) -> tuple[str, ...]:
    """The folders around all images, short of a split's or a label's own folder."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    common: list[str] = []
    for level in zip(*folders, strict=False):
        if (
            len(set(level)) > 1
            or level[0].lower() in SPLIT_NAMES
            or any(len(parts) <= len(common) + 1 for parts in folders)
        ):
            break
        common.append(level[0])
    return tuple(common)
