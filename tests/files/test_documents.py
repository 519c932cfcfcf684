"""The text of documents, as the worker process reads it, and what it refuses."""

import struct
import zipfile
from io import BytesIO

import pytest
from pypdf import PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject

from app.services.files.job import DOCX_TYPE, HTML_TYPE, PDF_TYPE, read_document
from app.services.files.limits import TEXT_BYTES, TEXT_TOKENS, text_tokens
from app.services.turns.context.prompt import estimate_tokens
from tests.files import made

ENTITY = '<!DOCTYPE d [<!ENTITY a "aaaa">]>'
OUTSIDE = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


def read(data: bytes, extension: str = "", limit_bytes: int = TEXT_BYTES) -> tuple[str, str]:
    """Return the media type and the text of a document that is taken."""
    fields, text = read_document({"extension": extension, "limit_bytes": limit_bytes}, data)
    assert "refusal" not in fields, fields
    return fields["media_type"], text.decode()


def refusal(data: bytes, extension: str = "", limit_bytes: int = TEXT_BYTES) -> str:
    """Return why a document is refused."""
    fields, text = read_document({"extension": extension, "limit_bytes": limit_bytes}, data)
    assert not text
    return fields["refusal"]


@pytest.mark.parametrize(
    ("data", "extension", "media_type", "text"),
    [
        (b"plain\r\ntext", "txt", "text/plain", "plain\ntext"),
        (b"\xef\xbb\xbf# Title", "md", "text/markdown", "# Title"),
        ("Grüße".encode("utf-16"), "", "text/plain", "Grüße"),
        (
            b"<p>One</p><script>x()</script><p>Two &amp; three",
            "html",
            HTML_TYPE,
            "One\n\nTwo & three",
        ),
        (b"<!DOCTYPE html><title>T</title><p>Body", "bin", HTML_TYPE, "T\n\nBody"),
        (b"<!-- a -->\n<html><p>Body", "", HTML_TYPE, "Body"),
        (b"a <html> is mentioned", "txt", "text/plain", "a <html> is mentioned"),
        (made.pdf("First page", "Second page"), "", PDF_TYPE, "First page\n\nSecond page"),
        (made.docx("One", "Two <b>"), "", DOCX_TYPE, "One\nTwo <b>"),
        (b"nul is \xed\xa0\x80".replace(b"\xed\xa0\x80", b"fine"), "", "text/plain", "nul is fine"),
    ],
    ids=["text", "markdown", "utf-16", "html", "doctype", "comment", "mention", "pdf", "docx", "x"],
)
def test_document_becomes_text(data: bytes, extension: str, media_type: str, text: str) -> None:
    assert read(data, extension) == (media_type, text)


def test_word_document_has_tables_breaks_and_no_fallbacks_or_deleted_words() -> None:
    body = (
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
        "<w:p><w:r><w:t>x</w:t><w:tab/><w:t>y</w:t><w:br/><w:t>z</w:t></w:r></w:p>"
        "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
        '<mc:AlternateContent xmlns:mc="m"><mc:Choice><w:p><w:r><w:t>new</w:t></w:r></w:p>'
        "</mc:Choice><mc:Fallback><w:p><w:r><w:t>old</w:t></w:r></w:p></mc:Fallback>"
        "</mc:AlternateContent>"
    )

    _, text = read(made.docx("First", body=body))

    assert text.split() == ["First", "a", "x", "y", "z", "new"]
    assert "x\ty\nz" in text


def test_document_may_have_50_000_tokens_as_prompts_estimate_them() -> None:
    most = "a" * TEXT_BYTES

    assert read(most.encode())[1] == most
    assert estimate_tokens(most) == text_tokens(TEXT_BYTES) == TEXT_TOKENS
    assert "50,000 tokens" in refusal(f"{most}a".encode())


@pytest.mark.parametrize(
    "data",
    [made.pdf("words " * 50, "more"), made.docx("words " * 50), b"words " * 50],
    ids=["pdf", "docx", "text"],
)
def test_document_with_too_much_text_says_so(data: bytes) -> None:
    fields, _ = read_document({"extension": "", "limit_bytes": 100}, data)

    assert fields["is_too_long"]


@pytest.mark.parametrize(
    "data",
    [b" \n ", made.pdf(""), made.docx(""), b"<html><script>all()</script>"],
    ids=["blank", "pdf", "docx", "html"],
)
def test_document_without_text_is_refused(data: bytes) -> None:
    assert "No text" in refusal(data)


@pytest.mark.parametrize("head", [ENTITY, OUTSIDE, "<!DOCTYPE d>"], ids=["entity", "file", "none"])
def test_xml_with_types_or_entities_is_refused(head: str) -> None:
    body = "<w:p><w:r><w:t>&a;</w:t></w:r></w:p>" if head == ENTITY else ""
    assert "declares" in refusal(made.docx("x", head=head, body=body))


def test_billion_laughs_are_not_laughed() -> None:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    head = f'<!DOCTYPE d [<!ENTITY l0 "lol">{levels}]>'
    assert "declares" in refusal(made.docx(head=head, body="<w:p><w:t>&l9;</w:t></w:p>"))


def test_archive_that_unpacks_to_much_is_left_when_it_is_too_much() -> None:
    xml = f'<d xmlns="{made.DOCX_NAMESPACE}">'.encode() + b" " * (200 << 20)
    bomb = made.archive(("word/document.xml", xml))
    assert len(bomb) < 300_000
    assert "unpacks to too many bytes" in refusal(bomb)


def test_archive_that_lies_about_sizes_is_refused() -> None:
    honest = made.docx("text " * 1000)
    with zipfile.ZipFile(BytesIO(honest)) as archive:
        size = archive.getinfo("word/document.xml").file_size
    lying = honest.replace(struct.pack("<I", size), struct.pack("<I", 10))
    assert refusal(lying)


def test_archive_of_too_many_files_is_refused() -> None:
    many = made.archive(*((f"f{n}", b"") for n in range(10_001)))
    assert "too many files" in refusal(many)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (made.archive(("xl/workbook.xml", b"<x/>")), "DOCX"),
        (b"PK\x03\x04" + bytes(100), "broken"),
        (made.docx("x")[:-10], "broken"),
        (made.archive(("word/document.xml", b"<d><unclosed>")), "broken"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "encrypted"),
        (made.pdf("secret", password="pw"), "encrypted"),
        (made.pdf("secret", password=""), "encrypted"),
        (b"\x7fELF\0\0\0", "UTF-8"),
        (b"caf\xe9", "UTF-8"),
        (b"a\0b", "UTF-8"),
    ],
    ids=["xlsx", "zip head", "cut", "xml", "ole", "password", "no password", "elf", "latin", "nul"],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(data: bytes, word: str) -> None:
    sentence = refusal(data)
    assert word in sentence
    assert sentence.endswith(".")


def test_encrypted_entry_is_refused() -> None:
    data = bytearray(made.docx("x"))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(mark)
        while start >= 0:
            data[start + place] |= 1
            start = data.find(mark, start + 4)
    assert "encrypted" in refusal(bytes(data))


def test_pdf_cut_anywhere_is_refused_or_read() -> None:
    data = made.pdf("Some words", "and more")
    for length in range(10, len(data), 7):
        fields, text = read_document({"extension": "", "limit_bytes": TEXT_BYTES}, data[:length])
        assert text or fields["refusal"].endswith("."), length


def test_pdf_whose_pages_lead_in_a_circle_is_refused() -> None:
    writer = PdfWriter()
    writer.add_blank_page(10, 10)
    pages = writer.root_object["/Pages"].get_object()
    assert isinstance(pages, DictionaryObject)
    pages[NameObject("/Kids")] = ArrayObject([writer.root_object.raw_get("/Pages")])
    pages[NameObject("/Count")] = NumberObject(10**9)
    file = BytesIO()
    writer.write(file)
    assert refusal(file.getvalue()).endswith(".")
