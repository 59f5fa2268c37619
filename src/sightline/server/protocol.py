"""HTTP as uvicorn reads it with h11, which ends a head of over 16 KiB (httptools lets it grow without end)."""

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sightline.server.errors import ApiError
from sightline.server.limits import HEADERS
from sightline.server.settings import MIB

STALLED_SECONDS = 30.0  # in which a client takes `_LEAST` bytes of its answer, or its connection is ended
_LEAST = 2**18
MOST_UNREAD = 256 * MIB  # of all answers that wait for their clients

# One that is no HTTP would else be a line on stderr for each request: whoever scans ports would fill the log.
_logger = logging.getLogger("sightline.server.protocol")
_logger.setLevel(logging.ERROR)


class Protocol(H11Protocol):
    """What is no HTTP is told so in the shape of all errors; nothing is upgraded to WebSocket; who does not read his
    answer is cut off, as it is in memory until then."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.logger = _logger
        self._check: asyncio.TimerHandle | None = None  # while the client has yet to take what was written

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()
        waiting = {each: each._check for each in self.connections if isinstance(each, Protocol) and each._check}
        if sum(each.unread() for each in waiting) > MOST_UNREAD:
            min(waiting, key=lambda each: waiting[each].when())._end()  # it took something the longest ago

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def unread(self) -> int:
        """Bytes of answers that the client has yet to take."""
        return self.transport.get_write_buffer_size()

    def _watch(self) -> None:
        self._check = self.loop.call_later(STALLED_SECONDS, self._check_reader, self.unread())

    def _unwatch(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _check_reader(self, before: int) -> None:
        if before - self.unread() < _LEAST:
            self._end()
        else:
            self._watch()

    def _end(self) -> None:
        """Drop the connection with what is unread of its answer."""
        self._unwatch()
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the application never sees, and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = "this is no HTTP/1.1 request, or its head has more than 16 KiB"
            reply = ApiError(400, message, code="invalid_http").reply()
            head = h11.Response(status_code=400, headers=[*reply.raw_headers, *HEADERS, (b"connection", b"close")])
            for event in (head, h11.Data(data=bytes(reply.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # uvicorn would tell on stderr, at each such request, of libraries that nobody needs
