"""What the worker process does with a document: find out what it is, and return its text."""

import codecs
import re
import zipfile
from io import BytesIO
from typing import Any

from app.core.storable_text import storable_text
from app.services.files.document_errors import DocumentRefused, DocumentTooLong
from app.services.files.docx import docx_text
from app.services.files.html_text import html_to_text

DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PDF_TYPE = "application/pdf"
HTML_TYPE, MARKDOWN_TYPE, TEXT_TYPE = "text/html", "text/markdown", "text/plain"
_TYPES_OF_NAMES = {
    "html": HTML_TYPE, "htm": HTML_TYPE, "xhtml": HTML_TYPE, "md": MARKDOWN_TYPE,
    "markdown": MARKDOWN_TYPE,
}  # fmt: skip
_PDF_WITHIN = 1024
"""Readers look for the mark of a PDF in so many bytes."""
_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HTML_START = re.compile(
    rb"\s*(?:<!--.{0,500}?-->\s*)?<(?:!doctype html|html)\b", re.IGNORECASE | re.DOTALL
)
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CODECS = (
    "ascii", "latin-1", "utf-16", "utf-16-be", "utf-16-le", "utf-8", "utf-8-sig", "charmap",
    "cp1252", "mac-roman", "gbk", "gb2312", "gb18030", "cp950", "big5", "cp932", "shift_jis",
    "euc_jp", "cp949", "euc_kr", "unicode_escape",
)  # fmt: skip
"""A job can open no file, and so load no codec."""


def read_document(fields: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return `media_type` and the text in UTF-8, or under `refusal` why it is refused.

    `fields` has `extension`, of the file's name, and `limit_bytes` of the text.
    """
    limit_bytes = int(fields["limit_bytes"])
    try:
        media_type, text = _read(data, str(fields["extension"]), limit_bytes)
        return {"media_type": media_type}, _encoded(text, limit_bytes)
    except DocumentRefused as refusal:
        return {"refusal": str(refusal), "is_too_long": refusal.is_too_long}, b""


def _encoded(text: str, limit_bytes: int) -> bytes:
    encoded = storable_text(text).strip().encode()
    if not encoded:
        raise DocumentRefused("No text was found in it; send a scanned page as an image.")
    if len(encoded) > limit_bytes:
        raise DocumentTooLong
    return encoded


def _read(data: bytes, extension: str, limit_bytes: int) -> tuple[str, str]:
    if b"%PDF-" in data[:_PDF_WITHIN]:
        from app.services.files.pdf import pdf_text

        return PDF_TYPE, pdf_text(data, limit_bytes)
    if data.startswith(_ZIP):
        return DOCX_TYPE, docx_text(data, limit_bytes)
    if data.startswith(_OLE):
        raise DocumentRefused("An encrypted document, or one of an old format, is not read.")
    text = _decoded(data)
    media_type = _TYPES_OF_NAMES.get(extension, TEXT_TYPE)
    if media_type == HTML_TYPE or _HTML_START.match(data.removeprefix(codecs.BOM_UTF8)):
        return HTML_TYPE, html_to_text(text)
    return media_type, text.replace("\r\n", "\n")


def _decoded(data: bytes) -> str:
    try:
        if data.startswith(_UTF16_MARKS):
            return data.decode("utf-16")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DocumentRefused("Send PNG, JPEG, WebP, GIF, PDF, DOCX, HTML, or text in UTF-8.")
    return text


def warm_up() -> None:
    """Read one document of each kind: what a job imports and builds once is there by then."""
    for name in _CODECS:
        codecs.lookup(name)
    for data in (_small_pdf(), _small_docx(), b"<html><p>a &amp; b</p>", b"%PDF-1.4 broken"):
        read_document({"extension": "", "limit_bytes": 100}, data)


def _small_pdf() -> bytes:
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    page = writer.add_blank_page(100, 100)
    font = DictionaryObject({
        NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
        NameObject("/BaseFont"): NameObject("/Helvetica"),
    })  # fmt: skip
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = DecodedStreamObject()
    stream.set_data(b"BT /F1 12 Tf 10 10 Td (a) Tj ET")
    page[NameObject("/Contents")] = stream.flate_encode()
    file = BytesIO()
    writer.write(file)
    return file.getvalue()


def _small_docx() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", '<d xmlns="wordprocessingml"><p><t>a</t></p></d>')
    return file.getvalue()
