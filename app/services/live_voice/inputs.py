"""What a response answers: the items before it become one turn's message, and messages before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from uuid import UUID

from app.models import Role, new_id
from app.services.audio.samples import SAMPLE_BYTES, duration_seconds, wav_header
from app.services.audio.silero import SAMPLE_RATE_HZ
from app.services.crud import ImportedMessage
from app.services.live_voice.config import ResponseSettings
from app.services.live_voice.items import Item, ItemKind, message_id_of
from app.services.ports import AudioFormat, ChatOptions, Recording
from app.services.turns import RequestKey, TurnOptions, TurnRequest
from app.services.turns.execution.message_input import GivenPart, InlineImage
from app.services.turns.parts import InputPart, TextPart, ToolResultPart
from app.services.voice.early_transcription import EarlyTranscription

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
    early: EarlyTranscription | None = None
    """The transcription of `pcm`, where that has begun already."""
    vain_seconds: float = 0.0
    """How much sound was transcribed in vain before."""
    images: list[bytes] = field(default_factory=list[bytes], repr=False)
    event_id: str | None = None
    """What the client calls the event that asks for the answer: again means the same turn."""
    results: list[ToolResultPart] = field(default_factory=list[ToolResultPart])
    before: list[ImportedMessage] = field(default_factory=list[ImportedMessage])
    """Messages that no turn answers, such as the history that a client brings."""
    history: tuple[int, UUID | None] = (0, None)
    """How many of them end with an answer, and its id, where that is of ours."""

    @property
    def recording(self) -> Recording | None:
        """The recording as the turn engine takes it."""
        return recording_of(self.pcm) if self.pcm else None

    @property
    def is_unheard(self) -> bool:
        """True for a recording whose words the line does not know."""
        return bool(self.pcm) and not (self.item and self.item.has_transcript)

    def put_before(self, pcm: bytes) -> None:
        """Begin with the recording of an earlier turn, whose words were never known."""
        self.pcm = pcm + _PAUSE + self.pcm
        self.drop_early()

    def drop_early(self) -> None:
        """Give up the transcription that has begun; it may be billed."""
        if self.early:
            self.early.drop()
            self.vain_seconds += self.early.seconds
            self.early = None

    @property
    def parts(self) -> Sequence[InputPart | ToolResultPart]:
        """The parts of the message; empty where it is plain text or sound."""
        if not self.results:
            return ()
        return [*([TextPart(self.text)] if self.text else []), *self.results]

    @property
    def posted_bytes(self) -> int:
        """About how much the messages before it take."""
        return sum(len(message.content.encode()) for message in self.before)

    @property
    def given_parts(self) -> Sequence[GivenPart]:
        """The text and the images, before those are checked."""
        texts = [TextPart(self.text)] if self.text else []
        return [*texts, *map(InlineImage, self.images)]

    def _key(self, session_id: UUID) -> RequestKey | None:
        if self.event_id is None:
            return None
        name = sha256(f"{session_id} {self.event_id}".encode()).hexdigest()
        content = sha256(self.text.encode() + self.pcm)
        for part in (*(each.content.encode() for each in self.results), *self.images):
            content.update(sha256(part).digest())
        return RequestKey(f"live-{name}", content.digest())

    def options(self, request: ResponseSettings, session_id: UUID) -> TurnOptions:
        """Return what the turn is started with; the images of its message are missing."""
        choice = ChatOptions(tool_choice=request.tool_choice) if request.tool_choice else None
        return TurnOptions(
            key=self._key(session_id),
            request=TurnRequest(
                tools=request.tools,
                may_call_tools=request.may_call_tools,
                options=choice,
                system_prompt=request.instructions or None,
                max_output_tokens=request.max_output_tokens,
                voice=request.voice,
            ),
            parts=self.parts,
            user_message_id=(self.item and message_id_of(self.item.id)) or new_id(),
        )


def read_inputs(pending: Sequence[Item]) -> TurnInput:
    """Return what the pending items ask for.

    The last answer among them, and what is before it, are history. Behind it, recordings become
    one; texts become one, or with a recording messages before it.
    """
    answers = [place for place, item in enumerate(pending) if item.role is Role.ASSISTANT]
    first = answers[-1] + 1 if answers else 0
    turn_input = TurnInput(before=[_message(item) for item in pending[:first] if item.text])
    if answers:
        turn_input.history = (len(turn_input.before), message_id_of(pending[first - 1].id))
    rest = pending[first:]
    turn_input.results = [
        ToolResultPart(item.call_id, item.output) for item in rest if item.kind is ItemKind.OUTPUT
    ]
    sounds = [item for item in rest if item.pcm]
    texts = [item for item in rest if item.text]
    for item in rest:
        turn_input.images += item.images
        item.images = []
    if sounds:
        turn_input.pcm = _PAUSE.join(item.pcm for item in sounds)
        turn_input.before += [_message(item) for item in texts]
        turn_input.item = sounds[-1]
        for item in sounds[:-1]:
            item.pcm = b""
    else:
        turn_input.text = "\n".join(item.text for item in texts)
        turn_input.item = texts[-1] if texts else None
        if turn_input.item is None and turn_input.images:
            turn_input.item = rest[-1]
    return turn_input


def recording_of(pcm: bytes) -> Recording:
    """Return samples of 16 kHz as a recording."""
    wav = wav_header(len(pcm)) + pcm
    return Recording(wav, AudioFormat.WAV, duration_seconds(wav))


def _message(item: Item) -> ImportedMessage:
    role = Role.ASSISTANT if item.role is Role.ASSISTANT else Role.USER
    return ImportedMessage(role, item.text)
