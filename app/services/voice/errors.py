"""Errors of stored audio; `services.audio.errors` has those of uploads."""

from app.core.errors import AppError, ErrorKind


class AudioNotStored(AppError):
    """No audio of this turn is stored."""

    kind = ErrorKind.NOT_FOUND
    code = "audio-not-stored"


class AudioNotKept(AppError):
    """The answer was spoken, and its audio is not kept."""

    kind = ErrorKind.GONE
    code = "audio-not-kept"
