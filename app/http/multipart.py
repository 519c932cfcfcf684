"""Forms whose files need no name: RFC 7578 asks clients for one, and some send none."""

from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from typing_extensions import override

from app.http.problems import MalformedBody

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


async def read_multipart(request: Request, **limits: Any) -> FormData:
    """Read a form of `multipart/form-data`. Raises `MalformedBody`."""
    try:
        return await _FileNamingParser(request.headers, request.stream(), **limits).parse()
    except MultiPartException as error:
        raise MalformedBody("The body is not what its content type says.") from error
