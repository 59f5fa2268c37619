"""What a server allows. Every limit is checked before the work that it bounds."""

from dataclasses import dataclass

from sightline.errors import InvalidArgumentError
from sightline.images import MAX_PIXELS

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """The limits of a server, and who may ask it.

    Attributes:
        api_key: what `Authorization: Bearer …` must carry; None: nobody is asked.
        hosts: the names in `Host` that are answered, so that no page of another site reaches a server on loopback by
            a name that it made point here (DNS rebinding); None: any.
        allow_urls: whether images may be named by URL. The server then fetches them.
        max_body: bytes of a request. All requests that are being read together hold eight times that at most.
        max_items: images, or texts, of a request.
        max_pixels: of an image, told by its header before it is decoded.
        max_text: characters of a text.
        max_prompts: labels times templates of a request.
        max_pairs: images times labels of a request.
        max_answer: bytes of an answer of /v1/classify, which grows with the product of what is asked.
        max_depth: brackets in brackets of JSON.
        max_values: values in JSON.
        body_seconds: for a request to arrive.
        queue_length: images, or texts, that are decoded, wait or are encoded; beyond them the answer is 429.
        batch_size: images, or texts, that go through the model together.
        deadline_ms: how long the first of a batch waits for others.
        cache_size: features that are remembered.
    """

    api_key: str | None = None
    hosts: tuple[str, ...] | None = LOOPBACK
    allow_urls: bool = False
    max_body: int = 32 * MIB
    max_items: int = 256
    max_pixels: int = 50_000_000
    max_text: int = 2_000
    max_prompts: int = 100_000
    max_pairs: int = 1_000_000
    max_answer: int = 8 * MIB
    max_depth: int = 32
    max_values: int = 200_000
    body_seconds: float = 30.0
    queue_length: int = 512
    batch_size: int = 32
    deadline_ms: float = 5.0
    cache_size: int = 16_384

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise InvalidArgumentError("the API key is empty: leave it out, or give one")
        if self.api_key is not None and not self.api_key.isascii():
            raise InvalidArgumentError("the API key has letters that clients send differently: use ASCII alone")
        for name in (
            "max_body",
            "max_items",
            "max_pixels",
            "max_text",
            "max_depth",
            "max_answer",
            "batch_size",
            "queue_length",
        ):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} is {getattr(self, name)}; it must be above zero")
        if self.max_items > self.queue_length:
            raise InvalidArgumentError(
                f"max_items is {self.max_items}, more than the queue ever takes: {self.queue_length}"
            )
        if self.max_pixels > MAX_PIXELS:
            raise InvalidArgumentError(f"max_pixels is {self.max_pixels}; the most that is decoded is {MAX_PIXELS}")
