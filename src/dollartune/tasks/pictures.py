"""How a picture becomes RGB of 8 bits: for files, zips, hub data sets and requests to the server alike."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from dollartune.errors import UserError

DEPTHS = (8, 10, 12, 14, 16, 24, 31)
"""Bits that scanners, cameras and microscopes have: values are scaled by the least depth that holds them, so that pictures of
one machine are scaled alike, and a 12-bit X-ray in a 16-bit file is not black. 31: whole numbers of 32 bits have a sign."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, MemoryError)
"""What Pillow's readers raise at a damaged file, beside its own warning of huge pictures."""


@dataclass(frozen=True)
class ImageBytes:
    """A picture that travels with its row, to a machine that has neither the folder nor the zip."""

    name: str
    content: bytes
    """The file as it was stored."""

    def read_bytes(self) -> bytes:
        """The file as it was stored."""
        return self.content

    def __call__(self) -> Any:
        """Returns a `PIL.Image` in RGB, upright, 8 bits.

        Raises:
            UserError: the file is damaged or is no image.
        """
        return open_picture(self.content, self.name)


def open_picture(content: bytes, where: str) -> Any:
    """Decodes a picture file, upright and in 8 bits.

    Returns:
        a `PIL.Image` in RGB.

    Raises:
        UserError: it is damaged, no picture, or larger than Pillow opens; `where` names it.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as image:
            return as_rgb(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"{where} is not a readable image: it has too many pixels ({error}).") from error
    except DAMAGE as error:
        why = str(error).partition(" <_io.")[0] or type(error).__name__  # without where it lies in memory
        raise UserError(f"{where} is not a readable image: {why}.") from error


def as_rgb(image: Any) -> Any:
    """A `PIL.Image` of any mode as RGB: turned by its orientation mark, more than 8 bits scaled."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)  # first: conversions drop the mark
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(image), "L")
    if _see_through(image):
        # On white, as viewers and pages show it: under what is seen through, files hold black or anything else.
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def _see_through(image: Any) -> bool:
    """Whether a picture says of its pixels how far they are seen through."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def oddities(image: Any) -> list[str]:
    """What `as_rgb` will do to an opened picture beyond a change of colour mode; reads its header only."""
    odd = []
    if image.mode.startswith("I") or image.mode == "F":
        odd.append("have more than 8 bits and are scaled to 8")
    elif _see_through(image):
        odd.append("may be seen through in places, which become white")
    # 274 is EXIF's orientation; 1 is upright.
    if image.getexif().get(274, 1) not in (0, 1):
        odd.append("are turned by their orientation mark")
    return odd


def _eight_bits(image: Any) -> Any:
    import numpy

    values = numpy.asarray(image)
    # Floating-point TIFFs mark missing pixels by NaN, which would be cast to any number.
    values = numpy.nan_to_num(values.astype(numpy.float64))
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if low < 0:
        # Signed values (computed tomography) have no black of their own: the least value is black.
        values, high = values - low, high - low
        scale = high or 1.0
    elif image.mode == "F" and high <= 1.0:
        scale = 1.0
    else:
        scale = float(next((2**bits - 1 for bits in DEPTHS if high <= 2**bits - 1), high))
    # Half a step is added, as the conversion cuts off.
    return numpy.clip(values * (255.0 / scale) + 0.5, 0, 255).astype(numpy.uint8)


def whole_file(content: bytes) -> bool:
    """Whether a PNG, JPEG or GIF ends as its format ends; True for formats that have no end mark.

    Quick: a cut-off download is the usual damage, and shows without decoding. Programs that add something behind the end
    make it False as well, so a False asks for decoding and is no verdict.
    """
    if content.startswith(b"\x89PNG"):
        # The last chunk: length, name and check sum, four bytes each, and some line ends that tools append.
        return b"IEND" in content[-16:]
    if content.startswith(b"\xff\xd8"):
        # Some cameras and programs fill up the last block behind the mark.
        return b"\xff\xd9" in content[-64:]
    if content.startswith(b"GIF8"):
        return b"\x3b" in content[-4:]
    return True
