"""Documentation made from what the program says of itself: a page per method, the study file's reference.

    dollartune docs --out docs        writes docs/methods/*.md, docs/study-file.md, docs/api.md,
                                      docs/record.schema.json

Nothing is listed by hand: a method of another package, found by its entry point, gets its page as well.
"""

from __future__ import annotations

from dollartune.pages.method_page import method_page, methods_index
from dollartune.pages.picture import method_picture
from dollartune.pages.reference import api_page, study_file_page
from dollartune.pages.writing import write_pages

__all__ = ["api_page", "method_page", "method_picture", "methods_index", "study_file_page", "write_pages"]
