"""What stands before every request: who may ask, how much is read, and what becomes of it when the client goes away."""

import asyncio
import hashlib
import hmac
import re
import time
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.server.batching import Batcher
from sightline.server.errors import ApiError, busy, logger, of_sightline, unavailable
from sightline.server.metrics import Metrics
from sightline.server.settings import Settings

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_KEPT_READING = 4  # times max_body: so much of a body that is too large is read and dropped, for its sender to hear why
_TOGETHER = 8  # times max_body: what all requests that are being read may hold
_ENCODING = ("/v1/embeddings", "/v1/classify", "/v1/rank")
_IMAGES = (b"data:image/", b"filename=")  # of JSON and of a form; who writes this in a text is refused with the images
# A string that never ends is taken to the end: were it none, each quote in it would be tried anew.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Guard:
    """ASGI middleware: checks a request, reads its body, and hands both on; a client that goes away ends the work."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, batcher: Batcher):
        self.app, self.settings, self.metrics, self.batcher = app, settings, metrics, batcher
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close", "code": 1008})

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError for a request that is not to be answered whatever it says."""
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(400, "this is no HTTP/1.1", code="invalid_http")
        if "transfer-encoding" in headers and "content-length" in headers:  # who reads the other one sees two requests
            message = "there are Content-Length and Transfer-Encoding: send one"
            raise ApiError(400, message, code="invalid_http")
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            raise ApiError(400, "there are several Host headers: send one", code="invalid_http")
        host = "".join(hosts)
        if self.settings.hosts is not None and _name(host) not in self.settings.hosts:
            raise ApiError(403, "this server answers to localhost alone", code="host_not_allowed")
        if _is_of_another_site(scope, headers, host):
            raise ApiError(403, "this server does not answer the pages of other sites", code="origin_not_allowed")
        if self.settings.api_key is not None and scope["path"].startswith(("/v1/", "/metrics")):
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        hashes = (hashlib.sha256(key).digest() for key in (given.strip().encode("latin-1"), self._key))
        if not hmac.compare_digest(*hashes) or scheme.lower() != "bearer":
            raise ApiError(401, "send the API key as Authorization: Bearer …", code="invalid_api_key")

    @property
    def _key(self) -> bytes:
        return (self.settings.api_key or "").strip().encode()

    def check_queue(self, scope: Scope, body: bytes | bytearray) -> None:
        """Refuse what brings an image to a full queue before it costs anything: it is not even parsed.

        Raises:
            ApiError: as `Batcher.check_room`.
        """
        if scope["path"] in _ENCODING and any(sign in body for sign in _IMAGES) and "image" in self.batcher.kinds:
            self.batcher.check_room("image", 1)

    def hold(self, n: int) -> None:
        """Account for n more bytes of bodies that are in memory."""
        if n > 0 and self._held + n > _TOGETHER * self.settings.max_body:
            raise busy(1)
        self._held += n


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send):
        self.guard, self.receive, self._send = guard, receive, send
        self.scope = _of_path(scope)
        self.headers = Headers(scope=self.scope)
        self.body = bytearray()
        self.held = 0
        if scope["method"] == "HEAD":  # answered as GET; what stands before us sends the head alone
            self.scope = {**self.scope, "method": "GET"}
        self.scope["hold"] = self.hold
        self.status: int | None = None
        self.closing = False  # whether the connection is of no use after the answer

    async def run(self) -> None:
        started = time.perf_counter()
        try:
            await self._answer()
        except ApiError as error:
            self.closing |= error.status == 400
            self.guard.metrics.rejected.labels(error.code).inc()
            await error.reply()(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # the server ends, and has waited
            self.closing = True
            if self.status is None:
                await unavailable("the server ends: ask again when it is back").reply()(
                    self.scope, self.receive, self.send
                )
        except Exception as error:
            if self.status is None:
                await of_sightline(error).reply()(self.scope, self.receive, self.send)
            else:
                logger.exception("a request failed amid its answer")
        finally:
            self.guard.hold(-self.held)
            self._measure(time.perf_counter() - started)

    async def _answer(self) -> None:
        self.guard.check(self.scope, self.headers)
        try:
            async with asyncio.timeout(self.guard.settings.body_seconds):
                whole = await self._read()
        except TimeoutError:
            self.closing = True
            seconds = f"{self.guard.settings.body_seconds:g}"
            raise ApiError(408, f"the request did not arrive within {seconds} s", code="too_slow") from None
        if whole:
            self.guard.check_queue(self.scope, self.body)
            await self._work()
        else:
            self.guard.metrics.cancelled.inc()

    async def _read(self) -> bool:
        """The body, up to the limit. False: the client has gone away."""
        limit = self.guard.settings.max_body
        length = self.headers.get("content-length", "")
        declared = int(length) if length.isdecimal() else 0
        if declared > _KEPT_READING * limit or (declared > limit and "expect" in self.headers):
            self.closing = True
            raise _too_large(limit)
        seen = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            seen += len(chunk)
            if seen <= limit:
                self._take(chunk)
            elif seen > _KEPT_READING * limit:
                self.closing = True
                raise _too_large(limit)
            if not message.get("more_body"):
                break
        if seen > limit:
            raise _too_large(limit)
        return True

    def _take(self, chunk: bytes) -> None:
        self.hold(len(chunk))
        self.body += chunk

    def hold(self, n: int) -> None:
        """Account for n more bytes of this request until it is answered, also of images that it names by URL."""
        self.guard.hold(n)
        self.held += n

    async def _work(self) -> None:
        """The application's answer, unless the client goes away: then its work is cancelled."""
        work = asyncio.current_task()
        assert work is not None
        gone = asyncio.Event()
        body: bytes | None = bytes(self.body)
        self.body.clear()

        async def replay() -> Message:
            nonlocal body
            if body is None:
                await gone.wait()
                return {"type": "http.disconnect"}
            message, body = {"type": "http.request", "body": body, "more_body": False}, None
            return message

        async def watch() -> None:
            while (await self.receive())["type"] != "http.disconnect":
                pass
            gone.set()
            work.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await self.guard.app(self.scope, replay, self.send)
        except asyncio.CancelledError:
            if not gone.is_set() or work.uncancel():
                raise  # the server itself is to end
            self.guard.metrics.cancelled.inc()
        finally:
            watcher.cancel()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in HEADERS if pair[0] not in own)]
            if self.closing:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    def _measure(self, seconds: float) -> None:
        route = getattr(self.scope.get("route"), "path", "none")  # the pattern: paths would be without number
        self.guard.metrics.requests.labels(route, self.status or "gone").inc()
        self.guard.metrics.latency.labels(route).observe(seconds)


def check_json(data: bytes, settings: Settings) -> None:
    """Look at JSON before it is parsed: a parser recurses, and makes an object of three bytes.

    Raises:
        ApiError: 413 for what is too deep, or has too many values.
    """
    if sum(map(data.count, (b"[", b"{"))) <= settings.max_depth and data.count(b",") <= settings.max_values:
        return  # strings included: an image in base64 has neither
    bare = _STRINGS.sub(b"", data)
    brackets = bare.translate(None, _NO_BRACKETS)
    if max(len(brackets) // 2, sum(map(bare.count, (b",", b"[", b"{")))) > settings.max_values:
        raise ApiError(413, f"the JSON has more than {settings.max_values:,} values", code="json_too_long")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > settings.max_depth:
            message = f"the JSON has more than {settings.max_depth} brackets in brackets"
            raise ApiError(413, message, code="json_too_deep")


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the request has more than {limit:,} bytes: send fewer images, or smaller ones", code="too_large"
    )


def _of_path(scope: Scope) -> Scope:
    """The same request of a path: it may ask for a whole URL, whose host counts then (RFC 9112, section 3.2.2)."""
    scheme, _, rest = (scope.get("raw_path") or b"").partition(b"://")
    if scheme.lower() != b"http":
        return scope
    host, _, path = rest.partition(b"/")
    headers = [(b"host", host), *(pair for pair in scope["headers"] if pair[0] != b"host")]
    return {**scope, "headers": headers, "raw_path": b"/" + path, "path": "/" + unquote(path.decode("ascii"))}


def _is_of_another_site(scope: Scope, headers: Headers, host: str) -> bool:
    """Whether a browser says that the page of another origin asks. A link to our own page is for anyone to follow.

    Sec-Fetch-Site is what the browser itself knows (W3C Fetch Metadata), also of a GET, which has no Origin. The scheme
    is compared only where it is missing: behind a proxy with TLS ours is another than the browser's.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in (None, "same-origin", "none"):
        return scope["path"] != "/" or headers.get("sec-fetch-mode") != "navigate"
    if origin is None:
        return False
    scheme, _, rest = origin.lower().partition("://")
    return rest != host.lower() or (site is None and scheme != scope["scheme"])


def _name(host: str) -> str:
    """The name in a Host header: without the port, and without the brackets of IPv6."""
    found: Any = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d*)?", host.strip())
    return (found[1] or found[2]).lower() if found else ""
