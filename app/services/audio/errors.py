"""What can be wrong with an upload; then no provider is called and nothing is stored."""

from app.core.errors import AppError, ErrorKind


class AudioRefused(AppError):
    """A recording that is not accepted; `listened_seconds` of it were decoded to find out."""

    listened_seconds: float = 0.0


class AudioEmpty(AudioRefused):
    """The upload holds no sound.

    No bytes at all, or a sound file without a single packet.
    """

    kind = ErrorKind.INVALID
    code = "audio-empty"


class AudioTooLarge(AudioRefused):
    """The upload is too large."""

    kind = ErrorKind.TOO_LARGE
    code = "audio-too-large"


class AudioTooLong(AudioRefused):
    """The recording is too long."""

    kind = ErrorKind.INVALID
    code = "audio-too-long"


class AudioUnreadable(AudioRefused):
    """The upload cannot be read as sound.

    None of the accepted formats by its bytes, or a broken file of one of them.
    """

    kind = ErrorKind.INVALID
    code = "audio-unreadable"


class NoSpeech(AudioRefused):
    """Nobody speaks in the recording."""

    kind = ErrorKind.INVALID
    code = "no-speech"
