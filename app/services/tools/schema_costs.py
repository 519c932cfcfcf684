"""How long validation may take at most, estimated from the sizes of a schema and of a value.

A validator computes in one go, and nothing else of the process runs meanwhile. A schema of 32 KB
may ask thousands of things of each of a value's parts, and a pattern of 20 characters thousands of
steps for each character of a text, so that both are counted before.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, cast

_MAX_COUNT = 1 << 40
"""Nested references double a count at each level."""
_CONTAINER_CHECKS = 25
_FLOAT_CHECKS = 200
"""Of one comparison with such a member of `enum` or `const`: numbers are compared exactly."""
_UNEVALUATED_CHECKS = 20
_REPETITION = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")
_ESCAPE = re.compile(r"\\(?:[pPxu]\{[^}]*\}|.)", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]?", re.DOTALL)


class SchemaSize(NamedTuple):
    """What a schema asks, with every reference replaced."""

    schemas: int = 0
    checks: int = 0
    """For each part of a value; one takes some 20 nanoseconds."""
    listed: int = 0
    """What the messages about one part of a value have in them."""
    steps: int = 0
    """For each character of a value's texts; one takes some 40 nanoseconds."""

    def plus(self, other: Self) -> "SchemaSize":
        """Return the size of both together."""
        return SchemaSize(*(min(a + b, _MAX_COUNT) for a, b in zip(self, other, strict=True)))


class ValueSize(NamedTuple):
    """What a schema is asked of."""

    parts: int
    characters: int
    """Of all texts and names."""


def own_size(schema: Mapping[str, Any]) -> SchemaSize:
    """Return the size of a schema without those in it."""
    checks = listed = 1
    for keyword in ("enum", "const"):
        if keyword in schema:
            parts = size_of_value(schema[keyword]).parts
            listed += parts
            checks += parts * _checks_of_member(schema[keyword])
    for keyword in ("required", "dependentRequired"):
        if keyword in schema:
            parts = size_of_value(schema[keyword]).parts
            listed += parts
            checks += 2 * parts
    patterns = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
    if isinstance(named := schema.get("patternProperties"), dict):
        patterns += cast("dict[str, object]", named)
    return SchemaSize(1, checks, listed, sum(map(steps_of_pattern, patterns)))


def with_unevaluated(schema: Mapping[str, Any], size: SchemaSize) -> SchemaSize:
    """Return the size of a schema and those in it: some keywords ask all of it again."""
    if "unevaluatedItems" in schema or "unevaluatedProperties" in schema:
        return size._replace(checks=min(size.checks * _UNEVALUATED_CHECKS, _MAX_COUNT))
    return size


def size_of_value(value: object) -> ValueSize:
    """Return the size of a JSON value."""
    parts, characters, left = 0, 0, [value]
    while left:
        each = left.pop()
        parts += 1
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, dict):
            members = cast("dict[str, object]", each)
            characters += sum(map(len, members))
            left += members.values()
        elif isinstance(each, list):
            left += cast("list[object]", each)
    return ValueSize(parts, characters)


def steps_of_pattern(pattern: str) -> int:
    """Return how many of its places an engine without backtracking may be at, at once.

    That is its length with every repetition written out, so that `[ab]{300}` has 300.
    """
    totals, last, at = [0], 0, 0
    while at < len(pattern):
        character = pattern[at]
        if repetition := _REPETITION.match(pattern, at):
            times = max(int(repetition[1]), int(repetition[2] or 0), 1)
            totals[-1] += last * (times - 1)
            last, at = last * times, repetition.end()
            continue
        if character in "*+?|^$":
            at += 1
            continue
        if character == "(":
            totals.append(0)
            last, at = 0, at + 1
            continue
        if character == ")":
            last = totals.pop() if len(totals) > 1 else 0
            at += 1
        else:
            match = (_CLASS if character == "[" else _ESCAPE).match(pattern, at)
            last, at = 1, match.end() if match else at + 1
        totals[-1] += last
        totals[-1] = min(totals[-1], _MAX_COUNT)
    return max(1, sum(totals))


def _checks_of_member(member: object) -> int:
    """Return what comparing with `enum` or `const` takes, for each of their parts."""
    members: list[object] = [member]
    if isinstance(member, list):
        members = cast("list[object]", member)
    kinds = {type(each) for each in members}
    if kinds <= {str} or kinds <= {int}:  # looked up
        return 0
    if not kinds & {dict, list, float}:
        return 2
    return _FLOAT_CHECKS if _has_float(members) else _CONTAINER_CHECKS


def _has_float(values: list[object]) -> bool:
    left = [*values]
    while left:
        each = left.pop()
        if isinstance(each, float):
            return True
        if isinstance(each, dict):
            left += cast("dict[str, object]", each).values()
        elif isinstance(each, list):
            left += cast("list[object]", each)
    return False
