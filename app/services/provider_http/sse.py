"""A reader of `text/event-stream` that works on bytes and knows nothing of sockets.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

_LF = 0x0A


class EventReader:
    """Cuts a byte stream into the data of its events, wherever its pieces were cut.

    Line ends may be LF, CRLF or CR; comments and all fields but `data` are skipped; the data
    lines of one event are joined by LF. An event or line longer than `max_event_bytes` sets
    `overflowed`, and nothing after it is read.
    """

    __slots__ = ("_after_cr", "_at_start", "_data", "_data_bytes", "_line", "_max", "overflowed")

    def __init__(self, max_event_bytes: int = 1 << 20) -> None:
        self.overflowed = False
        self._max = max_event_bytes
        self._line: bytearray = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes and return the data of each event that they complete."""
        if self.overflowed or not piece:
            return []
        if self._after_cr:
            self._after_cr = False
            if piece[0] == _LF:  # the other half of a CRLF
                piece = piece[1:]
        if b"\r" in piece:
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        events: list[bytes] = []
        if lines:
            if self._line:
                self._line += lines[0]
                lines[0] = bytes(self._line)
                self._line.clear()
            events = self._read(lines)
        if rest:
            self._line += rest  # in place: a line that comes byte by byte costs no more
            if len(self._line) + self._data_bytes > self._max:
                self.overflowed = True
        return events

    def end(self) -> list[bytes]:
        """Return the data of a last event that lacks its blank line."""
        return self.feed(b"\n\n")

    def _read(self, lines: list[bytes]) -> list[bytes]:
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                    self._data_bytes = 0
                continue
            if len(line) + self._data_bytes > self._max:
                self.overflowed = True
                break
            if line.startswith(b"data: "):
                value = line[6:]
            elif line.startswith(b"data:"):
                value = line[5:]
            elif line == b"data":
                value = b""
            else:
                continue
            data.append(value)
            self._data_bytes += len(value) + 1
        return events
