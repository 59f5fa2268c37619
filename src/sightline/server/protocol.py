"""HTTP as uvicorn reads it with h11, which ends a head of over 16 KiB (httptools lets it grow without end)."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sightline.server.errors import ApiError
from sightline.server.limits import HEADERS


class Protocol(H11Protocol):
    """What is no HTTP is told so in the shape of all errors; nothing is upgraded to WebSocket."""

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
