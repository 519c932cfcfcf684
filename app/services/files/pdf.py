"""The text of a PDF, page by page, by pypdf."""

import logging
from io import BytesIO

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from app.services.files.document_errors import DocumentRefused, TextCollector

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of what is in a file

_MOST_PAGES = 2_000


def pdf_text(data: bytes, limit_bytes: int) -> str:
    """Return the text of all pages, with an empty line between two. Raises `DocumentRefused`."""
    try:
        return _text(PdfReader(BytesIO(data)), TextCollector(limit_bytes))
    except (PyPdfError, RecursionError, ValueError, TypeError, KeyError, AttributeError,
            IndexError, OverflowError, AssertionError, NotImplementedError):  # fmt: skip
        # What its reader raises for broken files is not all of its own kind.
        raise DocumentRefused("The PDF is broken.") from None


def _text(reader: PdfReader, text: TextCollector) -> str:
    if reader.is_encrypted:
        raise DocumentRefused("The PDF is encrypted: send it without a password.")
    for number, page in enumerate(reader.pages):
        if number == _MOST_PAGES:
            raise DocumentRefused(f"A PDF may have {_MOST_PAGES:,} pages at most.")
        if number:
            text.add("\n\n")
        text.add(page.extract_text().strip())
    return text.text
