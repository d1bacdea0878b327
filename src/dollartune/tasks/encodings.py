"""How bytes of a data file become lines of text."""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path
from typing import IO

from dollartune.errors import UserError

NOT_UTF8 = "not valid UTF-8; of Windows or latin-1? Then: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"


def text_lines(path: Path, binary: IO[bytes]) -> list[str]:
    """The lines of a text in UTF-8, or in UTF-16 with its mark (Excel's "Unicode text", PowerShell)."""
    content = binary.read()
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        else:
            # Undecodable bytes become lone surrogates, so that the row that holds them can be named.
            text = content.decode("utf-8-sig", errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-16: {error.reason}.", "Save the file as UTF-8.") from error
    # Excel for Mac ends lines so; beside other line ends it is a part of a text.
    text = text if "\n" in text else text.replace("\r", "\n")
    return list(io.StringIO(text, newline="\n"))


def undecodable(text: str) -> bool:
    """Whether a text has bytes that are no UTF-8."""
    # Bytes that are not UTF-8 arrive as surrogates (`surrogateescape`), so that the reader can name their line.
    return not text.isascii() and _SURROGATE.search(text) is not None


_SURROGATE = re.compile("[\ud800-\udfff]")
