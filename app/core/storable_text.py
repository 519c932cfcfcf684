"""Text that every database stores."""


def storable_text(text: str) -> str:
    """Return `text` with U+FFFD instead of NUL and of halves of characters (lone surrogates).

    Two halves that belong together become their character.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\x00", "\ufffd") if "\x00" in text else text
