"""Which of an endpoint's media types a client prefers (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

EVENT_STREAM_TYPE = "text/event-stream"
_EVENT_STREAM = EVENT_STREAM_TYPE.encode()


def prefers_event_stream(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Tell whether `Accept` asks for server-sent events rather than the whole answer.

    They must be named: `*/*` alone gets the whole answer. Of the types that are named, the one with
    the highest `q` is preferred, of equals the first. Several `Accept` lines are one list.
    """
    values = [value for name, value in headers if name == b"accept"]
    if len(values) == 1 and values[0] == _EVENT_STREAM:
        return True
    accept = b",".join(values).decode("latin-1").lower()
    if EVENT_STREAM_TYPE not in accept:
        return False
    preferred, highest = "", 0.0
    for element in accept.split(","):
        media_type, *parameters = (part.strip() for part in element.split(";"))
        quality = _quality(parameters)
        if "*" not in media_type and quality > highest:
            preferred, highest = media_type, quality
    return preferred == EVENT_STREAM_TYPE


def _quality(parameters: Sequence[str]) -> float:
    """Return the weight of an element; one that cannot be read is 1, as if it were not there."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(max(float(value.strip()), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0
