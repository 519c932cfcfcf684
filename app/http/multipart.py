"""Forms whose files need no name: RFC 7578 asks clients for one, and some send none."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from typing_extensions import override

from app.http.problems import MalformedBody, RequestInvalid, invalid_request

FILE_PARTS = (b"audio", b"file")
"""The names of the parts that are files, whatever else they say."""


class _FileNamingParser(MultiPartParser):
    """Gives a name to files without one; Starlette takes a part without it for text."""

    @override
    def on_headers_finished(self) -> None:
        part = self._current_part
        _, parameters = parse_options_header(part.content_disposition)
        if parameters.get(b"name") in FILE_PARTS and b"filename" not in parameters:
            name = parameters[b"name"].decode()
            part.content_disposition = f'form-data; name="{name}"; filename="{name}"'.encode()
        super().on_headers_finished()

    def close_unfinished(self, form: FormData) -> bool:
        """Close the files whose part has no end; return whether there are any."""
        values = (value for _, value in form.multi_items())
        whole = {id(value.file) for value in values if isinstance(value, UploadFile)}
        unfinished = [file for file in self._files_to_close_on_error if id(file) not in whole]
        for file in unfinished:
            file.close()
        return bool(unfinished)


def close_files(form: FormData) -> None:
    """Close a form's files at once; Starlette's `close` does not where the request is cancelled."""
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            value.file.close()


async def read_any_multipart(request: Request, **limits: Any) -> FormData:
    """Read a form of `multipart/form-data`, whatever its parts are. Raises `MalformedBody`."""
    parser = _FileNamingParser(request.headers, request.stream(), **limits)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedBody("The body is not what its content type says.") from error
    if parser.close_unfinished(form):
        raise MalformedBody("The body ends in the middle of a file.")
    return form


async def read_multipart(request: Request, known: Sequence[str], **limits: Any) -> FormData:
    """Read a form of `multipart/form-data` whose parts are `known`, and each there once.

    Raises `MalformedBody` and `RequestInvalid`.
    """
    form = await read_any_multipart(request, **limits)
    try:
        _require_known_parts(form, known)
    except RequestInvalid:
        await form.close()
        raise
    return form


def _require_known_parts(form: FormData, known: Sequence[str]) -> None:
    names = [name for name, _ in form.multi_items()]
    faults = [
        {"type": "extra_forbidden", "loc": ("body", name), "msg": ""}
        for name in dict.fromkeys(names)
        if name not in known
    ]
    faults += [
        {"type": "repeated", "loc": ("body", name), "msg": "is there more than once"}
        for name, count in Counter(names).items()
        if count > 1 and name in known
    ]
    if faults:
        raise invalid_request(faults, known)
