"""Tools from an OpenAPI 3.0 or 3.1 document: one of the kind `http` for each operation.

The document is data: nothing is fetched, references are local, and what a tool's parameters cannot
say is told instead of guessed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import orjson

from app.core.value_objects import value_object
from app.services.tools.errors import ToolInvalid

MAX_DOCUMENT_BYTES = 1 << 20
MAX_OPERATIONS = 64
_MAX_INLINED = 5000
"""Values in one operation, with every reference replaced."""
_MAX_DEPTH = 60
_METHODS = ("get", "head", "post", "put", "patch", "delete")
_NOT_OF_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_ARGUMENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_IN_URL_PATH = re.compile(r"\{([^{}/]+)\}")
_DROPPED = frozenset(("nullable", "discriminator", "xml", "externalDocs", "example", "deprecated"))
"""Of schemas, in 3.0, which JSON Schema does not know."""


class OperationUnusable(Exception):
    """An operation cannot become a tool; the message says why."""


@value_object(frozen=True, slots=True)
class FoundOperation:
    """An operation: the definition of its tool, or why there is none."""

    operation_id: str
    definition: dict[str, Any] | None
    problem: str | None = None


def find_operations(
    document: Mapping[str, Any],
    include: Sequence[str] | None,
    base_url: str | None,
    headers: Mapping[str, str],
) -> list[FoundOperation]:
    """Return the operations named in `include`, or all, in the order of the document.

    Raises `ToolInvalid` where the document or the choice cannot be used as a whole.
    """
    version = document.get("openapi")
    if not isinstance(version, str) or not version.startswith(("3.0", "3.1")):
        raise ToolInvalid("The document must be OpenAPI 3.0 or 3.1: `openapi` says another thing.")
    if len(orjson.dumps(document)) > MAX_DOCUMENT_BYTES:
        raise ToolInvalid(f"The document has more than {MAX_DOCUMENT_BYTES >> 20} MB.")
    url = _base_url(document, base_url)
    found = {each.id: each for each in _operations(document)}
    if include is not None and (unknown := [name for name in include if name not in found]):
        raise ToolInvalid(f"The document has no operation with the id {unknown[0][:100]!r}.")
    operations = [each for each in found.values() if include is None or each.id in include]
    if len(operations) > MAX_OPERATIONS:
        raise ToolInvalid(
            f"The document has {len(operations)} operations: choose at most {MAX_OPERATIONS} in "
            "`include`."
        )
    return [_found(document, each, url, headers) for each in operations]


@value_object(frozen=True, slots=True)
class _Operation:
    id: str
    method: str
    path: str
    body: Mapping[str, Any]
    shared_parameters: Sequence[Any]


def _operations(document: Mapping[str, Any]) -> Iterator[_Operation]:
    for path, item in _mapping(document.get("paths")).items():
        members = _mapping(item)
        for method in _METHODS:
            body = _mapping(members.get(method))
            name = body.get("operationId")
            if isinstance(name, str) and name:
                yield _Operation(name, method, path, body, _list(members.get("parameters")))


def _base_url(document: Mapping[str, Any], given: str | None) -> str:
    servers = _list(document.get("servers"))
    url = given or (_mapping(servers[0]).get("url") if servers else None)
    if not isinstance(url, str) or not urlsplit(url).netloc or "{" in url:
        raise ToolInvalid("The document names no server by a whole URL: send `base_url`.")
    return url.rstrip("/")


def _found(
    document: Mapping[str, Any], operation: _Operation, base_url: str, headers: Mapping[str, str]
) -> FoundOperation:
    try:
        return FoundOperation(operation.id, _definition(document, operation, base_url, headers))
    except OperationUnusable as error:
        return FoundOperation(operation.id, None, str(error))


def _definition(
    document: Mapping[str, Any], operation: _Operation, base_url: str, headers: Mapping[str, str]
) -> dict[str, Any]:
    inliner = _Inliner(document)
    properties: dict[str, Any] = {}
    required: list[str] = []
    in_query: list[str] = []
    in_path: set[str] = set()
    fixed = {name.lower() for name in headers}
    given = {
        (parameter.get("name"), parameter.get("in")): parameter
        for each in (*operation.shared_parameters, *_list(operation.body.get("parameters")))
        if (parameter := _mapping(inliner.inlined(each)))
    }
    for (name, place), parameter in given.items():
        is_required = parameter.get("required") is True or place == "path"
        if place in {"header", "cookie"}:
            if is_required and str(name).lower() not in fixed:
                raise OperationUnusable(
                    f"it needs the {place} {str(name)[:64]!r}: set it in `headers`"
                )
            continue
        if not isinstance(name, str) or not _ARGUMENT.fullmatch(name):
            raise OperationUnusable("a parameter has a name that no URL template can have")
        schema = dict(_mapping(parameter.get("schema")))
        if isinstance(parameter.get("description"), str):
            schema.setdefault("description", parameter["description"])
        properties[name] = schema
        if is_required:
            required.append(name)
        (in_path.add if place == "path" else in_query.append)(name)
    if set(_IN_URL_PATH.findall(operation.path)) != in_path:
        raise OperationUnusable("its path names other parameters than it declares")
    _add_body(inliner, operation, properties, required)
    has_body = operation.method not in {"get", "head", "delete"}
    query = "&".join(f"{name}={{{name}}}" for name in in_query) if has_body else ""
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {
        "name": _NOT_OF_NAMES.sub("_", operation.id)[:64],
        "description": _description(operation),
        "kind": "http",
        "parameters": parameters,
        "http": {
            "method": operation.method.upper(),
            "url": f"{base_url}{operation.path}{'?' if query else ''}{query}",
            "headers": dict(headers),
        },
    }


def _add_body(
    inliner: "_Inliner", operation: _Operation, properties: dict[str, Any], required: list[str]
) -> None:
    body = _mapping(inliner.inlined(operation.body.get("requestBody")))
    if not body or operation.method in {"get", "head", "delete"}:
        return
    content = _mapping(body.get("content"))
    schema = _mapping(_mapping(content.get("application/json")).get("schema"))
    is_required = body.get("required") is True
    if not schema:
        if is_required:
            raise OperationUnusable("its body is not JSON")
        return
    members = _mapping(schema.get("properties"))
    if schema.get("type") != "object" and not members:
        raise OperationUnusable("its body is no JSON object with named members")
    if clash := set(members) & set(properties):
        raise OperationUnusable(f"{min(clash)[:64]!r} is both in its body and in its URL")
    properties.update(members)
    if is_required:
        required += [each for each in _list(schema.get("required")) if each in members]


def _description(operation: _Operation) -> str:
    texts = [operation.body.get("summary"), operation.body.get("description")]
    text = "\n".join(each.strip() for each in texts if isinstance(each, str) and each.strip())
    return (text or f"{operation.method.upper()} {operation.path}")[:1024]


class _Inliner:
    """Replaces local references, within bounds of depth and size."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._left = _MAX_INLINED

    def inlined(self, value: Any, depth: int = 0) -> Any:  # noqa: ANN401  # JSON
        """Return `value` without references, as JSON Schema. Raises `OperationUnusable`."""
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise OperationUnusable("its schemas are too large, or refer to themselves")
        if isinstance(value, list):
            return [self.inlined(each, depth + 1) for each in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        members = cast("dict[str, Any]", value)
        if isinstance(members.get("$ref"), str):
            return self.inlined(self._target(members["$ref"]), depth + 1)
        changed = {
            name: self.inlined(each, depth + 1)
            for name, each in members.items()
            if not _is_dropped(name, each)
        }
        return _as_2020_12(changed, is_nullable=members.get("nullable") is True)

    def _target(self, reference: str) -> Any:  # noqa: ANN401  # JSON
        if not reference.startswith("#/"):
            raise OperationUnusable("it refers to another document")
        target: Any = self._document
        for step in reference[2:].split("/"):
            target = _mapping(target).get(step.replace("~1", "/").replace("~0", "~"))
        if target is None:
            raise OperationUnusable("it has a reference that leads nowhere")
        return target


def _is_dropped(name: str, value: object) -> bool:
    """Return whether a member is a keyword of 3.0, and not a property of that name."""
    if name not in _DROPPED and not name.startswith("x-"):
        return False
    is_property = isinstance(value, dict) and name not in {"discriminator", "xml", "externalDocs"}
    return not is_property


def _as_2020_12(schema: dict[str, Any], *, is_nullable: bool) -> dict[str, Any]:
    """Translate what 3.0 says in another way."""
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), bool):
            is_exclusive = schema.pop(exclusive)
            if is_exclusive and limit in schema:
                schema[exclusive] = schema.pop(limit)
    if is_nullable and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
    return schema


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
