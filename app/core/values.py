"""Values: dataclasses that nobody changes.

To the type checker they are frozen, and it runs in CI. At run time they are plain, for a frozen one
is made by a call for each field, which takes three times as long; a turn makes some forty values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    value = dataclass
else:

    def value(*, frozen: bool, slots: bool) -> Callable[[type[T]], type[T]]:  # noqa: ARG001
        """Make a class of values: `@value(frozen=True, slots=True)`."""
        return dataclass(slots=slots, unsafe_hash=True)
