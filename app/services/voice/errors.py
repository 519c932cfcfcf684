"""What can be wrong with an upload; then no provider is called and nothing is stored.

And `AudioNotStored`, for sound that is asked for too late.
"""

from app.core.errors import AppError, ErrorKind


class AudioEmpty(AppError):
    """The upload holds no sound.

    No bytes at all, or a sound file without a single packet.
    """

    kind = ErrorKind.INVALID
    code = "audio-empty"


class AudioTooLarge(AppError):
    """The upload is too large."""

    kind = ErrorKind.TOO_LARGE
    code = "audio-too-large"


class AudioTooLong(AppError):
    """The recording is too long."""

    kind = ErrorKind.INVALID
    code = "audio-too-long"


class AudioUnreadable(AppError):
    """The upload cannot be read as sound.

    None of the accepted formats by its bytes, or a broken file of one of them.
    """

    kind = ErrorKind.INVALID
    code = "audio-unreadable"


class NoSpeech(AppError):
    """Nobody speaks in the recording."""

    kind = ErrorKind.INVALID
    code = "no-speech"


class AudioNotStored(AppError):
    """No sound of this turn is kept."""

    kind = ErrorKind.NOT_FOUND
    code = "audio-not-stored"
