"""What a response answers: the items before it become one turn's message, and messages before."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.models import Role, new_id
from app.services.audio.samples import SAMPLE_BYTES, duration_seconds, wav_header
from app.services.audio.silero import SAMPLE_RATE_HZ
from app.services.crud import ImportedMessage
from app.services.live_voice.items import Item, ItemKind, message_id_of
from app.services.ports import AudioFormat, Recording
from app.services.turns.parts import InputPart, TextPart, ToolResultPart

_PAUSE = bytes(SAMPLE_RATE_HZ // 5 * SAMPLE_BYTES)
"""Between two recordings that are answered as one."""


@dataclass(slots=True)
class TurnInput:
    """The message of one turn."""

    text: str = ""
    pcm: bytes = field(default=b"", repr=False)
    """A recording; then there is no `text`."""
    item: Item | None = None
    """The newest item of the message."""
    results: list[ToolResultPart] = field(default_factory=list[ToolResultPart])
    before: list[ImportedMessage] = field(default_factory=list[ImportedMessage])
    """Messages that no turn answers, such as the history that a client brings."""

    @property
    def recording(self) -> Recording | None:
        """The recording as the turn engine takes it."""
        if not self.pcm:
            return None
        wav = wav_header(len(self.pcm)) + self.pcm
        return Recording(wav, AudioFormat.WAV, duration_seconds(wav))

    @property
    def parts(self) -> Sequence[InputPart | ToolResultPart]:
        """The parts of the message; empty where it is plain text or sound."""
        if not self.results:
            return ()
        return [*([TextPart(self.text)] if self.text else []), *self.results]

    def message_id(self) -> object:
        """Return the id that the message must have, or a new one."""
        return (self.item and message_id_of(self.item.id)) or new_id()


def read_inputs(pending: Sequence[Item]) -> TurnInput:
    """Return what the pending items ask for.

    The last answer among them, and what is before it, are history. Behind it, recordings become
    one; texts become one, or with a recording messages before it.
    """
    answers = [place for place, item in enumerate(pending) if item.role is Role.ASSISTANT]
    first = answers[-1] + 1 if answers else 0
    turn_input = TurnInput(before=[_message(item) for item in pending[:first] if item.text])
    rest = pending[first:]
    turn_input.results = [
        ToolResultPart(item.call_id, item.output) for item in rest if item.kind is ItemKind.OUTPUT
    ]
    sounds = [item for item in rest if item.pcm]
    texts = [item for item in rest if item.text]
    if sounds:
        turn_input.pcm = _PAUSE.join(item.pcm for item in sounds)
        turn_input.before += [_message(item) for item in texts]
        turn_input.item = sounds[-1]
        for item in sounds[:-1]:
            item.pcm = b""
    else:
        turn_input.text = "\n".join(item.text for item in texts)
        turn_input.item = texts[-1] if texts else None
    return turn_input


def joined_recordings(first: bytes, second: bytes) -> bytes:
    """Return two recordings as one, with a short pause between."""
    return first + _PAUSE + second if first else second


def _message(item: Item) -> ImportedMessage:
    role = Role.ASSISTANT if item.role is Role.ASSISTANT else Role.USER
    return ImportedMessage(role, item.text)
