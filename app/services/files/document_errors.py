"""Why a document is refused; the worker process raises it, and must not load the server's part."""


class DocumentRefused(Exception):
    """A document that is not taken; the message is a sentence for the client."""

    is_too_long = False


class DocumentTooLong(DocumentRefused):
    """It has more text than may be shown to a model."""

    is_too_long = True

    def __init__(self) -> None:
        super().__init__("A document may have 50,000 tokens of text at most.")


class TextCollector:
    """Joins pieces of text, up to `limit_bytes` of UTF-8."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: list[str] = []
        self._size_bytes = 0

    def add(self, piece: str) -> None:
        """Add a piece. Raises `DocumentTooLong`."""
        self._size_bytes += len(piece.encode("utf-8", "replace"))
        if self._size_bytes > self._limit_bytes:
            raise DocumentTooLong
        self._pieces.append(piece)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)
