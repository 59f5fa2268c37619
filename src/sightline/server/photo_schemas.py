"""What requests about the photos of an index, and their replies, look like."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from sightline.server.schemas import Image, Many, Model, Strict

MOST = 500  # photos that are told at once
Id = Annotated[str, Field(max_length=64, description="Of a photo, as a search has given it.")]
Weight = Annotated[float, Field(gt=0, le=1000, description="How much it counts.")]
Sure = Annotated[float | None, Field(description="How sure it is, from 0 to 1; null where it cannot be said.")]


class Term(Strict):
    """One of `text`, `image` and `id`, and how much it counts."""

    text: str | None = None
    image: Image | None = None
    id: Id | None = None
    weight: Weight = 1.0


class Among(Strict):
    """Which photos are looked at: all that is given has to fit. A photo of which it is not known does not."""

    after: Annotated[str | None, Field(max_length=40, description="Taken then or later: 2019, 2019-07 …")] = None
    before: Annotated[str | None, Field(max_length=40, description="Taken earlier than that.")] = None
    folder: Annotated[
        str | None, Field(max_length=4096, description="In this folder or below it, from that of the photos on.")
    ] = None
    near: Annotated[Many[float] | None, Field(min_length=2, max_length=2, description="Degrees north and east.")] = None
    within: Annotated[float, Field(gt=0, le=100_000, description="Kilometres from there.")] = 10.0
    types: Annotated[
        Many[str], Field(default_factory=list, max_length=20, description="photo, video, or suffixes such as jpg.")
    ]
    min_size: Annotated[int, Field(ge=0, le=2**31 - 1, description="Pixels that the shorter side has.")] = 0
    top_k: Annotated[int, Field(ge=1, le=MOST, description="How many photos are told.")] = 20
    min_score: Annotated[float | None, Field(description="The least cosine.")] = None


class SearchRequest(Among):
    """What the photos shall show: all of it together. In a form, each `file` is an image like `images`."""

    model: Model = None
    query: Annotated[str | None, Field(description="A text. It is taken as it is: weights are for `add`.")] = None
    images: Annotated[Many[Image], Field(default_factory=list)]
    add: Annotated[Many[str | Term], Field(default_factory=list, description="What else they shall show.")]
    subtract: Annotated[Many[str | Term], Field(default_factory=list, description="What they shall not show.")]


class SimilarRequest(Among):
    """Photos like one of the index, without itself and its copies; of a video, without its other moments."""

    model: Model = None
    id: Id


class ExplainRequest(Strict):
    """Where in a photo each text is found. One `image`, or the `id` of a photo; in a form, one `file`."""

    model: Model = None
    image: Image | None = None
    id: Id | None = None
    texts: Annotated[Many[str], Field(max_length=8)]
    picture: Annotated[bool, Field(description="Whether the maps are drawn too, over the photo.")] = False


class Photo(BaseModel):
    """A photo, or a moment of a video."""

    object: Literal["photo"]
    id: str
    name: Annotated[str, Field(description="From the folder of the photos on, as one line of text.")]
    kind: str
    moment: Annotated[float | None, Field(description="Seconds from the start of a video.")]
    size: Annotated[int | None, Field(description="Bytes of the file.")]
    width: int | None
    height: int | None
    taken: Annotated[str | None, Field(description="ISO 8601, local time where it was taken.")]
    copies: Annotated[int, Field(description="Other files with the same bytes.")]


class FoundPhoto(Photo):
    score: Annotated[float, Field(description="The cosine to what was asked for.")]
    sure: Sure
    match: Annotated[bool | None, Field(description="Whether that is enough.")]


class SearchReply(BaseModel):
    object: Literal["list"]
    model: str
    match: Annotated[
        bool | None,
        Field(description="Whether any photo matches; null where that cannot be said: it can of one text alone."),
    ]
    sure: Sure
    data: list[FoundPhoto]


class PhotosReply(BaseModel):
    """What is in the index."""

    object: Literal["photos"]
    count: Annotated[int, Field(description="Photos; copies count once.")]
    videos: int
    map: Annotated[bool, Field(description="Whether the server has what a map takes.")]


class Heat(BaseModel):
    """Where in a photo a text is found."""

    object: Literal["heat_map"]
    text: str
    score: Annotated[float, Field(description="The cosine of the text and the whole photo.")]
    fit: Annotated[float, Field(description="The heat of the whole photo.")]
    grid: Annotated[
        list[list[float]],
        Field(description="Heat, row by row: standard deviations above background texts, 0 for a text like any."),
    ]
    square: Annotated[list[int], Field(description="Left, top, right and bottom, in pixels, of what the model sees.")]
    size: Annotated[list[int], Field(description="Width and height of the photo, as `square` counts them.")]
    picture: Annotated[str | None, Field(description="A PNG as a data: URI.")]


class ExplainReply(BaseModel):
    object: Literal["list"]
    model: str
    hottest: Annotated[float, Field(description="The heat of the brightest colour in `picture`.")]
    data: list[Heat]


class Cluster(BaseModel):
    name: str
    count: int
    x: Annotated[float, Field(description="Where its name is best written.")]
    y: float


class Point(BaseModel):
    id: str
    name: str
    x: Annotated[float, Field(description="From -1 to 1.")]
    y: float
    cluster: Annotated[int, Field(description="The place in `clusters`, from 0.")]
    moment: float | None


class MapReply(BaseModel):
    object: Literal["map"]
    total: Annotated[int, Field(description="In the index; of many, so many as are on the map are drawn at random.")]
    clusters: list[Cluster]
    points: list[Point]


class Computing(BaseModel):
    object: Literal["map"]
    status: Literal["computing"]
