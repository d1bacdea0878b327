"""Pictures come out as a viewer shows them: a gradient stays a gradient, whatever the mode and format; none lies on its side."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from dollartune.errors import UserError
from dollartune.tasks import load_task
from dollartune.tasks.pictures import as_rgb, open_picture

CASES = Path(__file__).parents[1] / "cases" / "files"


def stored(image: Any, form: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


GRADIENTS = {
    "8 bits": (numpy.arange(256, dtype=numpy.uint8), "PNG"),
    "12 bits in 16": (numpy.linspace(0, 4095, 256).astype(numpy.uint16), "PNG"),
    "16 bits": (numpy.linspace(0, 65535, 256).astype(numpy.uint16), "PNG"),
    "16 bits, tiff": (numpy.linspace(0, 65535, 256).astype(numpy.uint16), "TIFF"),
    "32 bits": (numpy.linspace(0, 2**31 - 1, 256).astype(numpy.int32), "TIFF"),
    "signed": (numpy.linspace(-1000, 3000, 256).astype(numpy.int32), "TIFF"),
    "fractions of one": (numpy.linspace(0, 1, 256).astype(numpy.float32), "TIFF"),
    "fractions": (numpy.linspace(0, 255, 256).astype(numpy.float32), "TIFF"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_stays_one(name: str) -> None:
    values, form = GRADIENTS[name]
    found = numpy.asarray(open_picture(stored(Image.fromarray(numpy.tile(values, (4, 1))), form), name))[0, :, 0]
    assert numpy.abs(found.astype(int) - numpy.arange(256)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("L", (8, 8), 200)
    image = image if mode == "I;16" else image.convert("RGB" if mode in ("HSV", "YCbCr", "CMYK", "PA") else "L")
    made = Image.fromarray(numpy.full((8, 8), 200, numpy.uint16)) if mode == "I;16" else image.convert(mode)
    found = as_rgb(made)
    assert (found.mode, found.size) == ("RGB", (8, 8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_undone(orientation: int) -> None:
    """The mark says how the stored picture is to be turned; the picture as seen is 30 wide and 60 high, its top left dark."""
    seen = Image.new("L", (30, 60), 255)
    seen.paste(0, (0, 0, 10, 10))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Pillow's transposition that makes the stored one
    image = seen if orientation == 1 else seen.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    found = open_picture(stored(image, "JPEG", exif=exif.tobytes()), "picture")
    assert found.size == (30, 60)
    assert found.getpixel((4, 4))[0] < 60
    assert found.getpixel((25, 55))[0] > 200


def test_the_cases() -> None:
    found = numpy.asarray(open_picture((CASES / "grad12.png").read_bytes(), "grad12.png"))
    assert (found.min(), found.max()) == (0, 255)
    assert (found == 255).mean() < 0.05
    assert open_picture((CASES / "exif.jpg").read_bytes(), "exif.jpg").size == (30, 60)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_half_a_picture_is_refused_by_name(form: str) -> None:
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    content = stored(noise, form)
    with pytest.raises(UserError, match="half a file is not a readable image"):
        open_picture(content[: len(content) // 2], "half a file")


def test_what_is_no_picture_is_refused_without_its_place_in_memory() -> None:
    with pytest.raises(UserError, match=r"^this is not a readable image: cannot identify image file\.$"):
        open_picture(b"no picture", "this")


def test_what_is_done_to_pictures_is_said_once(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / "set" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numpy.full((8, 8), 300 * number + 1, numpy.uint16)).save(folder / f"{number}.png")
    task = load_task(str(tmp_path / "set"))
    assert [note for note in task.notes if "more than 8 bits" in note] == [
        "12 of 12 pictures have more than 8 bits and are scaled to 8"
    ]


def test_one_damaged_picture_costs_its_row() -> None:
    with pytest.raises(UserError, match=r"red/trunc.png: not a readable image"):
        load_task(str(CASES / "images_one_truncated"))
    task = load_task({"data": str(CASES / "images_one_truncated"), "on_bad_row": "skip"})
    assert any("skipped 1 malformed row" in note for note in task.notes)
    for rows in task.load().values():
        for row in rows:
            row.fields["image"]()


@pytest.mark.parametrize(
    ("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("P", "PNG"), ("RGBA", "WEBP")]
)
def test_a_drawing_on_nothing_lies_on_white(mode: str, form: str) -> None:
    """Without its alpha channel a black drawing on a transparent ground is black all over."""
    if mode == "P":
        drawn = Image.new("P", (16, 16), 0)
        drawn.putpalette([0, 0, 0, 0, 0, 0])
        drawn.paste(1, (4, 4, 12, 12))
    else:
        drawn = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
        drawn.paste((0, 0, 0, 255), (4, 4, 12, 12))
    options = {"transparency": 0} if mode == "P" else {"lossless": True} if form == "WEBP" else {}
    found = open_picture(stored(drawn.convert(mode), form, **options), "drawing")
    assert found.mode == "RGB"
    assert found.getpixel((1, 1)) == (255, 255, 255)
    assert found.getpixel((8, 8)) == (0, 0, 0)


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / "set" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 9).save(folder / f"{number}.png")
    (tmp_path / "set" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"set/a/1.png: not a readable image \(the file is empty\)"):
        load_task(str(tmp_path / "set"))
    (tmp_path / "set" / "a" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"not a readable image \(cannot identify image file\)"):
        load_task(str(tmp_path / "set"))
