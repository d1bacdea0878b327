"""Documentation made from what the program says of itself: a page per method, the study file's reference.

    dollartune docs --out docs        writes docs/methods/*.md, docs/study-file.md, docs/results.md,
                                      docs/record.schema.json

Nothing is listed by hand: a method of another package, found by its entry point, gets its page as well. The Python API is not
made here: mkdocstrings reads it from the source (docs/api.md).
"""

from __future__ import annotations

from dollartune.pages.method_page import method_page, methods_index
from dollartune.pages.picture import method_picture
from dollartune.pages.reference import study_file_page
from dollartune.pages.writing import write_pages

__all__ = ["method_page", "method_picture", "methods_index", "study_file_page", "write_pages"]
