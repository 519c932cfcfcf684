"""What was heard of an answer that was interrupted, from how long its sound played."""

from collections.abc import Sequence

from app.services.turns.voice_stages import SpokenPiece


def heard_content(content: str, pieces: Sequence[SpokenPiece], played_ms: int) -> str | None:
    """Return the beginning of `content` that was heard; `None` where that is all of it.

    Whole pieces by their exact sample counts; within one, whole words in proportion.
    """
    end = 0
    for piece in pieces:
        played_samples = played_ms * piece.sample_rate_hz // 1000 - piece.start_sample
        if played_samples >= piece.sample_count:
            end = piece.content_end
            continue
        if played_samples > 0:
            written = content[piece.content_start : piece.content_end]
            share = played_samples / piece.sample_count
            end = piece.content_start + whole_words(written, share)
        break
    heard = content[:end].rstrip()
    return None if heard == content.rstrip() else heard


def whole_words(text: str, share: float) -> int:
    """Return where to cut `text` so that about `share` of it remains, and no half word.

    A script without spaces is cut between any two characters.
    """
    end = int(len(text.rstrip()) * share)
    if end >= len(text) or text[end].isspace():
        return end
    spaces = [place for place, character in enumerate(text[:end]) if character.isspace()]
    if spaces:
        return spaces[-1]
    return end if not any(map(str.isspace, text.strip())) and not text.isascii() else 0
