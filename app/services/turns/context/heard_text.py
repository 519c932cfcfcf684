"""Compute the played text of an interrupted answer from the played duration of its audio."""

from collections.abc import Sequence

from app.services.turns.voice_port import SpokenPiece


def heard_text(content: str, pieces: Sequence[SpokenPiece], played_ms: int) -> str | None:
    """Return the played beginning of `content`; `None` if all of it was played.

    Complete pieces count by their exact number of samples; in the last piece, the number of whole
    words is proportional to the played samples.
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
    beginning = content[:end].rstrip()
    return None if beginning == content.rstrip() else beginning


def whole_words(text: str, share: float) -> int:
    """Return the length of the prefix of `text` with about `share` (0 to 1) of it, in whole words.

    Text of a script without spaces is cut between any two characters.
    """
    end = int(len(text.rstrip()) * share)
    if end >= len(text) or text[end].isspace():
        return end
    spaces = [place for place, character in enumerate(text[:end]) if character.isspace()]
    if spaces:
        return spaces[-1]
    return end if not any(map(str.isspace, text.strip())) and not text.isascii() else 0
