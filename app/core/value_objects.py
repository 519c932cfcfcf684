"""Value objects: dataclasses that are frozen for the type checker only.

The type checker runs in CI. At run time they are plain dataclasses: a frozen one sets each field
by a function call, so creating it takes three times as long, and a turn creates about forty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    value_object = dataclass
else:

    def value_object(*, frozen: bool, slots: bool) -> Callable[[type[T]], type[T]]:  # noqa: ARG001
        """Declare a value object: `@value_object(frozen=True, slots=True)`."""
        return dataclass(slots=slots, unsafe_hash=True)
