"""Image folders, zips of images, and lists of image files with labels."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, nearest
from dollartune.tasks.files import SPLIT_NAMES, require_path
from dollartune.tasks.pictures import DAMAGE, oddities, open_picture, whole_file
from dollartune.tasks.rows import BadRows, Row

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
        """The file as it is stored."""
        if self.archive.is_dir():
            return (self.archive / self.name).read_bytes()
        # The process is part of the key, so that a fork opens its own.
        return _archive(self.archive, os.getpid()).read(self.name)

    def __call__(self) -> Any:
        """Returns a `PIL.Image` in RGB, upright, 8 bits.

        Raises:
            UserError: the file is damaged or is no image.
        """
        return open_picture(self.read_bytes(), f"{self.name} in {self.archive}")


@dataclass(frozen=True)
class ImageBytes:
    """A picture that travels with its row, to a machine that has neither the folder nor the zip."""

    name: str
    content: bytes
    """The file as it was stored."""

    def __call__(self) -> Any:
        """Returns a `PIL.Image` in RGB, upright, 8 bits.

        Raises:
            UserError: the file is damaged or is no image.
        """
        return open_picture(self.content, self.name)


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
        if normal not in self.names:
            raise KeyError(f"no image {name!r} in {self.place.name}.{nearest(name, sorted(self.names)[:10_000])}")
        return ImageFile(self.place, normal)


def read_image_folder(source: Path, bad: BadRows) -> dict[SplitName, list[Row]]:
    """Reads images whose folder is their label: `cats/1.png`, or `train/cats/1.png` when the splits are given.

    Args:
        source: a folder or a zip; one folder around everything is looked through.
        bad: what a damaged image, or one outside every label's folder, does.

    Returns:
        split -> rows with `image` (an `ImageFile`) and `label`; all under `train` when no split is named.

    Raises:
        UserError: no images, or no folders to take labels from.
    """
    store = ImageStore(source)
    names = sorted(name for name in store.names if PurePosixPath(name).suffix.lower() in ENDINGS)
    if not names:
        raise UserError(f"{source} holds no images ({', '.join(sorted(ENDINGS))}).")
    # A zip often has one folder around everything, which is no label.
    common = _common_folder(names)
    rows: dict[SplitName, list[Row]] = {}
    for name in names:
        parts = PurePosixPath(name).parts[len(common) :]
        split = SPLIT_NAMES.get(parts[0].lower())
        where = f"{source.name}/{name}"
        # label/file, or split/label/file. Anything deeper is ambiguous: the label might be either folder.
        if len(parts) != (2 if split is None else 3):
            bad.report(
                where,
                "an image should lie in a folder with the name of its label, as in cats/1.png or train/cats/1.png",
            )
            continue
        # The path, not the pixels: a hundred thousand pictures would fill the memory before the first step.
        values = {"image": ImageFile(source, name), "label": parts[-2]}
        rows.setdefault(split or "train", []).append(Row(values, where))
    return rows


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


def image_place(folder: Path) -> Path:
    """Where a data folder keeps its images: `images.zip`, `images/`, or the folder itself."""
    return next((folder / name for name in ("images.zip", "images") if (folder / name).exists()), folder)


def holds_images(source: Path) -> bool:
    """Whether a folder or zip has an image anywhere in it."""
    return any(PurePosixPath(name).suffix.lower() in ENDINGS for name in ImageStore(source).names)


MOST_DECODED = 2000
"""Pictures of one data set that are decoded while it is read: two thousand take seconds. Of more, those are decoded whose
file does not end as its format ends, which is how most damage shows."""


class PictureCheck:
    """Looks at every picture of a data set once, before anything is paid: what is damaged, and what will be done to others.

    Args:
        count: how many pictures there are.
        full: decode all of them, however many.
    """

    def __init__(self, count: int, full: bool = False) -> None:
        self.decode_all = full or count <= MOST_DECODED
        self.count = count
        self.changed: Counter[str] = Counter()

    def problem(self, picture: Any) -> str | None:
        """What is wrong with one picture (an `ImageFile`, or another function that loads one), or None."""
        if isinstance(picture, ImageFile):
            stamp = _stamp(picture)
            problem, changes = _looked_at(picture, self.decode_all, stamp)
            self.changed.update(changes)
            return problem
        if not callable(picture) or not self.decode_all:
            return None
        try:
            picture()
        except UserError as error:
            return error.message.rstrip(".")
        except DAMAGE as error:
            return f"not a readable image ({error or type(error).__name__})"
        return None

    def notes(self) -> list[str]:
        """One sentence for each thing that is done to pictures of this data set."""
        said = [f"{count} of {self.count} pictures {what}" for what, count in sorted(self.changed.items())]
        if not self.decode_all:
            said.append(f"of {self.count:,} pictures the headers and ends were looked at, not every pixel")
        return said


def _stamp(picture: ImageFile) -> int:
    path = picture.archive / picture.name if picture.archive.is_dir() else picture.archive
    return path.stat().st_mtime_ns


# One process loads a task several times (check, plan, run); a picture that has not changed is decoded once.
@lru_cache(maxsize=100_000)
def _looked_at(picture: ImageFile, decode: bool, stamp: int) -> tuple[str | None, tuple[str, ...]]:
    """(what is wrong, what will be changed) of one picture file; `stamp` tells a file that was replaced."""
    from io import BytesIO

    from PIL import Image

    try:
        content = picture.read_bytes()
        with Image.open(BytesIO(content)) as image:
            changes = tuple(oddities(image))
        if decode or not whole_file(content):
            open_picture(content, "it")
    except UserError as error:
        return f"not a readable image ({error.message.removeprefix('it is not a readable image: ').rstrip('.')})", ()
    except (*DAMAGE, Image.DecompressionBombError, zipfile.BadZipFile) as error:
        return f"not a readable image ({str(error) or type(error).__name__})".replace(
            " <_io.BytesIO object", " <data"
        ), ()
    return None, changes


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
        return frozenset(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    try:
        with zipfile.ZipFile(source) as archive:
            return frozenset(
                # macOS puts a second, unreadable entry for each file under __MACOSX.
                name
                for name in archive.namelist()
                if not name.endswith("/") and not name.startswith("__MACOSX/")
            )
    except zipfile.BadZipFile as error:
        raise UserError(f"{source} is neither a folder nor a readable zip: {error}.") from error


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
