"""`sightline serve`: a model, and the photos of a folder where one is given, behind HTTP."""

import ipaddress
import logging
import os
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.indexes import open_index
from sightline.cli.loading import DeviceOption, ModelOption, PrecisionOption, load_model
from sightline.cli.progress import progress_bar
from sightline.errors import ImageIndexError, InvalidArgumentError, MissingExtraError, SightlineError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from sightline.encoder import Encoder
    from sightline.index.image_index import ImageIndex

KEY_VARIABLE = "SIGHTLINE_API_KEY"
_GRACE = 5  # seconds that requests have left when the server is to end


def serve(
    context: typer.Context,
    photos: Annotated[Path | None, typer.Argument(metavar="[PHOTOS]", hidden=True)] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the index of PHOTOS is, if not in PHOTOS/.sightline. Without PHOTOS it is served as it is.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 for other machines too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=KEY_VARIABLE,
            metavar="KEY",
            help="What clients must send as `Authorization: Bearer KEY`. Others on this machine may see an option, "
            "and not the variable.",
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images that clients name by URL, from public addresses alone.")
    ] = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "float32",
) -> None:
    """Serve a model over HTTP: embeddings, classification, and search of a folder of photos.

    PHOTOS is indexed first, as `sightline index` does it; without it there is no search. The address is printed on
    stdout when the server is ready. Ctrl-C ends it, with exit code 0. Needs the extra [serve].

    \b
      sightline serve
      sightline serve ~/Photos --model ViT-B/32
      SIGHTLINE_API_KEY=… sightline serve --host 0.0.0.0 --port 80

    \b
    Then, from anywhere on this machine:
      curl http://127.0.0.1:8000/v1/classify -F file=@a.jpg -F labels=cat -F labels=dog
    """
    try:
        import fastapi  # noqa: F401
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise MissingExtraError("sightline serve", "serve") from None
    from sightline.server.settings import LOOPBACK, Settings

    with closing(_bind(host, port)) as listening:
        api_key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key  # one that is empty is no key left out
        is_local = _is_loopback(listening.getsockname()[0])
        settings = Settings(
            api_key=api_key, hosts=(*LOOPBACK, host.lower()) if is_local else None, allow_urls=allow_urls
        )
        if not is_local and api_key is None:
            _say(f"note: whoever reaches {host} may use this server: give it an API key in {KEY_VARIABLE}")
        opened = _index(photos, index)
        source = context.get_parameter_source("model")
        asked = model if source is not None and source.name == "COMMANDLINE" else None
        clip = _model(opened, asked, model, device, precision)
        if opened is not None:
            with closing(opened):
                _update(opened, photos, clip)
        from sightline.server.app import create_app

        app = create_app(clip, index=None if opened is None else opened.folder, settings=settings)
        _run(app, listening, host)


def _bind(host: str, port: int) -> socket.socket:
    """The socket, bound before anything else: a port that is taken shall not cost the loading of a model.

    Nobody is let in yet: whoever comes is refused by the system, and does not wait, until `_run` listens.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InvalidArgumentError(f"--host {host!r} is no address of this machine ({error})") from None
    listening = socket.socket(family, kind, protocol)
    if sys.platform != "win32":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise _taken(host, port, error) from None
    return listening


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    inside = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (inside or found).is_loopback


def _taken(host: str, port: int, error: OSError) -> SightlineError:
    return SightlineError(
        f"cannot listen on {host}:{port} ({error.strerror}): choose another port with --port, or 0 for a free one"
    )


def _index(photos: Path | None, index: Path | None) -> "ImageIndex | None":
    """The index to serve, which `_update` makes if it is not there yet."""
    from sightline.index.image_index import FOLDER, ImageIndex

    if photos is not None:
        if not str(photos) or not photos.expanduser().is_dir():
            raise InvalidArgumentError(f"{str(photos)!r} is no folder: name the folder of the photos")
        return ImageIndex.open(index or photos.expanduser() / FOLDER)
    return None if index is None else _existing(index)


def _existing(index: Path) -> "ImageIndex":
    """Raises InvalidArgumentError if there is none that can be read."""
    try:
        opened = open_index(index)
        opened.catalogue  # noqa: B018, it is read
    except ImageIndexError as error:
        raise InvalidArgumentError(str(error)) from None
    return opened


def _model(
    index: "ImageIndex | None", asked: str | None, model: str | None, device: str | None, precision: str
) -> "Encoder":
    """What was asked for on the command line, else what made the index, else what the environment says."""
    identity = index.catalogue.identity if index is not None and index.exists() else None
    if identity is not None and asked is None:
        model, precision = identity.model, identity.precision
    if model is not None:
        _say(f"loading {model}")
    return load_model(model, device, precision)


def _update(index: "ImageIndex", photos: Path | None, clip: "Encoder") -> None:
    from rich.console import Console

    index.use(clip)
    if photos is None:
        return
    console = Console(stderr=True) if sys.stderr.isatty() else None
    with progress_bar("indexing", console) as report:
        summary = index.update(photos.expanduser(), progress=report, say=_say)
    _say(str(summary))


def _run(app: "FastAPI", listening: socket.socket, host: str) -> None:
    """Serve until a signal says to end. That is how a server ends well: the exit code is 0.

    Raises:
        SightlineError: if the model encodes nothing, or another program has taken the port meanwhile.
    """
    import uvicorn

    from sightline.server.protocol import Protocol

    port = listening.getsockname()[1]
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # of each damaged form, its sender is told

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                await super().startup(sockets)  # the model encodes an image and a text before anybody is let in
                listening.listen(self.config.backlog)  # again: uvloop is silent where another program has come before
            except OSError:
                await self.shutdown(sockets)
                raise
            typer.echo(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            sys.stdout.flush()

    config = uvicorn.Config(
        app,
        http=Protocol,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_GRACE,
    )
    # uvicorn raises the signal once more when it has ended well, for whoever started it.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _ended)
    try:
        Server(config).run(sockets=[listening])
    except OSError as error:
        raise _taken(host, port, error) from None
    except SystemExit:  # uvicorn's, which has told of it
        raise SightlineError("the server could not start: the lines above say why") from None


def _ended(*_: Any) -> None:
    pass


def _say(line: str) -> None:
    typer.echo(line, err=True)
