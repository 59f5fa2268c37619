"""What requests and replies look like. An unknown key is an error: a typing mistake shall not be a silent default."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

DATA_URI = "a data: URI (data:image/jpeg;base64,…), or an http(s) URL where the server allows them"


T = TypeVar("T")
# A list of what is asked. Its first fault is its only one: 200,000 of them would take seconds to tell.
Many = Annotated[list[T], Field(fail_fast=True)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImageUrl(Strict):
    url: Annotated[str, Field(description=DATA_URI)]


class ImagePart(Strict):
    """An image, as OpenAI's messages have it."""

    type: Literal["image_url"]
    image_url: ImageUrl | Annotated[str, Field(description=DATA_URI)]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: str = "user"
    content: str | Many[TextPart | ImagePart]


Image = Annotated[str | ImagePart, Field(description=DATA_URI)]
Model = Annotated[
    str | None, Field(description="The model that is served (GET /v1/models); another is refused. It may be left out.")
]


class EmbeddingsRequest(Strict):
    """`input` or `messages`. In a form, each `file` is an image, after those of `input`."""

    model: Model = None
    input: Annotated[
        str | Many[str | TextPart | ImagePart] | None,
        Field(description="Texts and images. A string that begins with data:image/ is an image."),
    ] = None
    messages: Annotated[
        Many[Message] | None, Field(description="In place of `input`: each part of each message is embedded by itself.")
    ] = None
    modality: Annotated[
        Literal["text", "image"] | None, Field(description="What all strings of `input` are, whatever they begin with.")
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="base64 is of float32, the lowest byte first.")
    ] = "float"
    dimensions: Annotated[int | None, Field(description="CLIP's features have one length: no other is given.")] = None
    user: Annotated[str | None, Field(description="Not looked at.")] = None


class LabelSet(Strict):
    """One question: which of these labels?"""

    labels: Many[str]
    templates: Annotated[
        str | Many[str], Field(description="A template set (GET /v1/templates), or templates like `a photo of a {}.`")
    ] = "plain"
    independent: Annotated[
        bool, Field(description="Weigh each label for itself: several may fit, or none. Else they sum to one.")
    ] = False


class ClassifyRequest(Strict):
    """`images` × `labels`, or × each of `label_sets`. In a form, each `file` is an image."""

    model: Model = None
    images: Many[Image] = []
    labels: Many[str] | None = None
    templates: str | Many[str] = "plain"
    independent: bool = False
    label_sets: Annotated[
        dict[str, LabelSet] | None, Field(description="In place of `labels`: several sets, each under a name.")
    ] = None
    top_k: Annotated[int, Field(ge=1, le=1000, description="How many labels of each set are told, best first.")] = 5
    abstain_below: Annotated[
        float, Field(ge=0, le=1, description="Abstain where the lesser of probability and fit is below this.")
    ] = 0.5


class RankRequest(Strict):
    """One `image` against `texts`, or one `text` against `images`. In a form, files are the images."""

    model: Model = None
    image: Image | None = None
    texts: Many[str] | None = None
    text: str | None = None
    images: Many[Image] | None = None
    top_k: Annotated[int | None, Field(ge=1, description="How many are told, best first; all if left out.")] = None


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class Label(BaseModel):
    label: str
    probability: float


class SetResult(BaseModel):
    """What one image is by one label set."""

    name: str
    labels: list[Label]
    fit: Annotated[float, Field(description="From 0 to 1: the best label alone against nothing in particular.")]
    abstain: bool


class Classified(BaseModel):
    object: Literal["classification"]
    index: int
    sets: list[SetResult]


class ClassifyReply(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Classified]


class Ranked(BaseModel):
    object: Literal["rank"]
    index: Annotated[int, Field(description="The place in the request, from 0.")]
    score: Annotated[float, Field(description="The cosine.")]
    probability: Annotated[float, Field(description="A softmax over all that were ranked.")]


class RankReply(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Ranked]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every error, as OpenAI has it."""

    error: ErrorBody


class ServedModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    embed_dim: int
    image_size: int
    context_length: int
    precision: str


class ModelsReply(BaseModel):
    object: Literal["list"]
    data: list[ServedModel]


class TemplatesReply(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]


class State(BaseModel):
    status: str
