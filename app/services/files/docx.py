"""The text of a Word document (ECMA-376): one XML file in a ZIP archive.

Nothing but that file is unpacked, up to a limit, and its XML may declare no types and entities.
"""

import zipfile
import zlib
from io import BytesIO
from xml.parsers import expat

from app.services.files.document_errors import DocumentRefused, TextCollector

_BODY = "word/document.xml"
_XML_BYTES = 32 << 20
_PIECE_BYTES = 1 << 16
_MOST_ENTRIES = 10_000
_ENCRYPTED = 1
_METHODS = frozenset((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
_WORD = "wordprocessingml"
_TEXT_AT = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_TEXT_AFTER = {"p": "\n", "tc": "\t", "tr": "\n"}
_HIDDEN = frozenset(("Fallback",))
"""What older programs show instead of what is there already."""


def docx_text(data: bytes, limit_bytes: int) -> str:
    """Return the paragraphs of a document, one a line. Raises `DocumentRefused`."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if len(archive.infolist()) > _MOST_ENTRIES:
                raise DocumentRefused("The archive has too many files.")
            return _text(archive, limit_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError):
        raise DocumentRefused("The archive is broken.") from None
    except expat.ExpatError:
        raise DocumentRefused("The document's XML is broken.") from None


def _text(archive: zipfile.ZipFile, limit_bytes: int) -> str:
    try:
        entry = archive.getinfo(_BODY)
    except KeyError:
        raise DocumentRefused("Of ZIP archives, only Word documents (DOCX) are read.") from None
    if entry.flag_bits & _ENCRYPTED:
        raise DocumentRefused("The document is encrypted: send it without a password.")
    if entry.compress_type not in _METHODS:
        raise DocumentRefused("The archive is compressed in a way that is not read.")
    reader = _BodyReader(limit_bytes)
    size = 0
    with archive.open(entry) as body:
        while piece := body.read(_PIECE_BYTES):
            size += len(piece)
            if size > _XML_BYTES:
                raise DocumentRefused("The document unpacks to too many bytes.")
            reader.feed(piece)
    return reader.end()


class _BodyReader:
    """Collects the text of the XML as it comes."""

    def __init__(self, limit_bytes: int) -> None:
        self._text = TextCollector(limit_bytes)
        self._hidden = 0
        self._is_text = False
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        self._parser = parser

    def feed(self, piece: bytes) -> None:
        self._parser.Parse(piece, False)  # noqa: FBT003  # it takes no keyword

    def end(self) -> str:
        self._parser.Parse(b"", True)  # noqa: FBT003
        return self._text.text

    @staticmethod
    def _refuse(*_: object) -> None:
        raise DocumentRefused("The document's XML declares types or entities.")

    def _start(self, name: str, _attributes: object) -> None:
        namespace, _, local = name.rpartition(" ")
        if local in _HIDDEN:
            self._hidden += 1
        elif _WORD in namespace:
            self._is_text = local == "t"
            if local in _TEXT_AT and not self._hidden:
                self._text.add(_TEXT_AT[local])

    def _end(self, name: str) -> None:
        namespace, _, local = name.rpartition(" ")
        self._is_text = False
        if local in _HIDDEN:
            self._hidden -= 1
        elif _WORD in namespace and local in _TEXT_AFTER and not self._hidden:
            self._text.add(_TEXT_AFTER[local])

    def _characters(self, text: str) -> None:
        if self._is_text and not self._hidden:
            self._text.add(text)
