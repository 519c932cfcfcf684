"""The items of a line's conversation, as its client knows them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from app.models import Message, Role, new_id
from app.services.live_voice.errors import LiveInputRefused
from app.services.turns.parts import (
    REQUESTED,
    Part,
    ToolCallPart,
    ToolResultPart,
    decode_parts,
    is_image,
)

_ITEMS_LIMIT = 10_000
_MOST_BYTES = 32 << 20
"""Of the texts of a line's items, and of recordings that are not answered yet."""
_PREFIX = "item_"


class ItemKind(StrEnum):
    """The kind of an item."""

    MESSAGE = "message"
    CALL = "function_call"
    OUTPUT = "function_call_output"


@dataclass(slots=True)
class Item:
    """A message, a call of one of the client's tools, or the output of one."""

    id: str
    kind: ItemKind = ItemKind.MESSAGE
    role: Role = Role.USER
    text: str = ""
    """The words; of sound its transcript, as far as it is known."""
    is_sound: bool = False
    """True where the message was spoken."""
    has_transcript: bool = True
    """False while the transcript of a recording is not known."""
    is_complete: bool = True
    """False for an answer that was cut short."""
    is_running: bool = False
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str = ""
    images: list[bytes] = field(default_factory=list[bytes], repr=False)
    """Of a message that is not answered yet; `image_count` stays."""
    image_count: int = 0
    pcm: bytes = field(default=b"", repr=False)
    """A recording that is not answered yet: 16 kHz mono, signed 16 bits."""

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        texts = len(self.text) + len(self.output) + len(self.arguments)
        return texts + len(self.pcm) + sum(map(len, self.images))

    @property
    def waiting_bytes(self) -> int:
        """How much of that is kept only until the item is answered."""
        return len(self.pcm) + sum(map(len, self.images))


def item_id(message_id: UUID) -> str:
    """Return the id of the item that a stored message is."""
    return _PREFIX + message_id.hex


def new_item_id() -> tuple[UUID, str]:
    """Return the id of a message to come, and of its item."""
    message_id = new_id()
    return message_id, item_id(message_id)


def message_id_of(item: str) -> UUID | None:
    """Return the message that an id of ours means; `None` for a client's own id."""
    try:
        return UUID(item.removeprefix(_PREFIX)) if item.startswith(_PREFIX) else None
    except ValueError:
        return None


def items_of(message: Message) -> list[Item]:
    """Return a stored message as items: its words, and the calls or results that it has."""
    words = message.content if message.heard_content is None else message.heard_content
    is_sound = message.modality.value == "voice"
    base = item_id(message.id)
    items: list[Item] = []
    parts = decode_parts(message.parts or ())
    images = sum(map(is_image, parts))
    if words or images:
        message_item = Item(base, role=message.role, text=words, is_sound=is_sound)
        message_item.image_count = images
        items.append(message_item)
    for number, part in enumerate(parts, start=1):
        if isinstance(part, ToolCallPart):
            call = Item(f"{base}_{number}", ItemKind.CALL, call_id=part.call_id, name=part.name)
            call.arguments = part.arguments
            items.append(call)
        elif isinstance(part, ToolResultPart):
            output = Item(f"{base}_{number}", ItemKind.OUTPUT, call_id=part.call_id)
            output.output = part.content
            items.append(output)
    return items


def call_items(message_id: UUID, parts: Iterable[Part]) -> Iterator[Item]:
    """Yield the calls of the client's tools that an answer ends with."""
    for number, part in enumerate(parts, start=1):
        if isinstance(part, ToolCallPart) and part.status == REQUESTED:
            yield Item(
                f"{item_id(message_id)}_{number}",
                ItemKind.CALL,
                Role.ASSISTANT,
                call_id=part.call_id,
                name=part.name,
                arguments=part.arguments,
            )


class LineConversation:
    """The items of one line in their order, and those that no response has answered yet."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._order: list[str] = []
        self.pending: list[Item] = []
        self._text_bytes = 0

    @property
    def last_id(self) -> str | None:
        """The id of the newest item."""
        return self._order[-1] if self._order else None

    def add(self, item: Item, *, after: str | None = None) -> str | None:
        """Add an item, by default at the end; return the id of the one before it.

        `after` is `root` for the first place. Raises `LiveInputRefused`.
        """
        if item.id in self._items:
            raise LiveInputRefused(
                "item_create_duplicate_item_id", f"The item {item.id} exists already.", "item.id"
            )
        self.require_room(item)
        self._text_bytes += item.size_bytes - item.waiting_bytes
        place = len(self._order)
        if after is not None:
            place = 0 if after == "root" else self._place(after) + 1
        before = self._order[place - 1] if place else None
        self._items[item.id] = item
        self._order.insert(place, item.id)
        return before

    def require_room(self, item: Item) -> None:
        """Raise `LiveInputRefused` where the line has as many items as it may."""
        waiting = sum(each.waiting_bytes for each in self.pending)
        if (
            len(self._items) >= _ITEMS_LIMIT
            or self._text_bytes + waiting + item.size_bytes > _MOST_BYTES
        ):
            raise LiveInputRefused(
                "conversation_too_long",
                f"A line has {_ITEMS_LIMIT} items of {_MOST_BYTES >> 20} MB at most: open another.",
            )

    def _place(self, known: str) -> int:
        if known not in self._items:
            raise LiveInputRefused(
                "item_create_invalid_previous_item_id",
                f"There is no item {known}.",
                "previous_item_id",
            )
        return self._order.index(known)

    def calls(self) -> list[Item]:
        """Return the calls of the client's tools."""
        return [item for item in self._items.values() if item.kind is ItemKind.CALL]

    def has(self, item: Item) -> bool:
        """Tell whether the item is part of the conversation."""
        return item.id in self._items

    def find(self, item: str, action: str) -> Item:
        """Return an item. Raises `LiveInputRefused` with the code of `action`."""
        if item not in self._items:
            raise LiveInputRefused(
                f"item_{action}_invalid_item_id",
                f"Error {action[:-1]}ing item: there is no item {item}.",
                "item_id",
            )
        return self._items[item]

    def remove(self, item: Item) -> None:
        """Forget an item."""
        del self._items[item.id]
        self._order.remove(item.id)
        if item in self.pending:
            self.pending.remove(item)

    def take_pending(self) -> list[Item]:
        """Return the items that no response has answered yet; now one does."""
        taken, self.pending = self.pending, []
        order = {name: place for place, name in enumerate(self._order)}
        return sorted(taken, key=lambda each: order.get(each.id, 0))
