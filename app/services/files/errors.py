"""Errors of files.

The first line of an error's docstring is the title in the response.
"""

from app.core.errors import AppError, ErrorKind


class FileNotFound(AppError):
    """The file does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "file-not-found"


class FileInUse(AppError):
    """A message uses the file."""

    kind = ErrorKind.CONFLICT
    code = "file-in-use"


class FileTooLarge(AppError):
    """The file is too large."""

    kind = ErrorKind.TOO_LARGE
    code = "file-too-large"


class FileUnreadable(AppError):
    """The file cannot be read.

    None of the accepted formats by its bytes, a broken or encrypted file of one of them, or a
    document without text.
    """

    kind = ErrorKind.INVALID
    code = "file-unreadable"


class FileTooLong(AppError):
    """The document has too much text."""

    kind = ErrorKind.INVALID
    code = "file-too-long"


class ImagesNotSupported(AppError):
    """The agent's model does not see images."""

    kind = ErrorKind.INVALID
    code = "images-not-supported"


def file_not_found() -> FileNotFound:
    """Return the error for a file that does not exist or is hidden from the caller."""
    return FileNotFound("No file with this id exists here.")
