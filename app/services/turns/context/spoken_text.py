"""What of an answer is read aloud: all of it, or of JSON the text that a pointer leads to."""

from app.services.tools.results import UnreadableResult, select
from app.services.turns.records import TurnRecord


def spoken_text(record: TurnRecord, content: str) -> str | None:
    """Return what is read aloud of the answer `content`.

    `None` for JSON that is not whole, or in which nothing is where the pointer leads.
    """
    pointer = _pointer(record)
    if pointer is None:
        return content
    try:
        return select(content, pointer)
    except UnreadableResult:
        return None


def _pointer(record: TurnRecord) -> str | None:
    if record.request and (chosen := record.request.answer_format):
        return chosen.speak
    persona = record.persona
    return None if persona.output_schema is None else persona.output_speak
