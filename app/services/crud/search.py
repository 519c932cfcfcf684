"""The condition of a search: all of its words are in a session's title or in one message."""

from collections.abc import Sequence
from unicodedata import normalize
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, and_, func, literal, or_, select

from app.core.database.engines import HAS_WORDS
from app.models import Message, Session
from app.services.crud.errors import SearchInvalid

_MOST_WORDS = 16


def words_of(search: str) -> Sequence[str]:
    """Return the different words of a search, composed and in lower case.

    Raises `SearchInvalid`.
    """
    words = list(dict.fromkeys(normalize("NFC", search).lower().split()))
    if len(words) > _MOST_WORDS:
        raise SearchInvalid(f"A search takes at most {_MOST_WORDS} different words.")
    return words


def has_words(
    words: Sequence[str],
    column: ColumnElement[str] | ColumnElement[str | None],
    *,
    on_postgres: bool,
) -> ColumnElement[bool]:
    """Return the condition that a text has all of the words, in any case and composition."""
    if all(map(str.isascii, words)):
        return and_(*(column.icontains(word, autoescape=True) for word in words))
    if on_postgres:
        return and_(*(or_(*(column.ilike(form) for form in _patterns(word))) for word in words))
    return getattr(func, HAS_WORDS)(column, normalize("NFC", " ".join(words).casefold())) == 1


def _patterns(word: str) -> set[str]:
    """Return what finds a word whose accents are parts of its letters, or follow them.

    PostgreSQL knows one small sigma, where Greek has another at the end of a word.
    """
    escaped = "".join(f"\\{each}" if each in "%_\\" else each for each in word).replace("ς", "_")
    return {f"%{normalize(form, escaped)}%" for form in ("NFC", "NFD")}


def says(
    search: str, workspace_id: UUID, *, on_postgres: bool, each_session: bool
) -> ColumnElement[bool]:
    """Return the condition on `Session`. Raises `SearchInvalid`.

    With `each_session` the messages of each session are read that the other conditions of the query
    let through, and no index of the whole workspace is asked.
    """
    words = words_of(search)
    in_workspace = Message.workspace_id == workspace_id
    says_it = has_words(words, Message.content.expression, on_postgres=on_postgres)
    if each_session:
        # A scalar subquery: Postgres would hash the whole workspace for EXISTS or IN.
        found = (
            select(literal(1))
            .where(in_workspace, Message.session_id == Session.id, says_it)
            .limit(1)
            .correlate(Session)
            .scalar_subquery()
        )
        in_message = found.is_not(None)
    elif on_postgres and all(map(str.isascii, words)):
        # The function reads the workspace from the transaction, as the row-level policies do.
        matching = func.agent_platform.sessions_that_say(" ".join(words), type_=Uuid())
        in_message = Session.id.in_(select(matching))
    else:  # full-text search splits words at spaces, which not all languages have
        in_message = Session.id.in_(select(Message.session_id).where(in_workspace, says_it))
    in_title = has_words(words, Session.title.expression, on_postgres=on_postgres)
    return or_(in_title, in_message)
