"""Weights to a web page and a REST endpoint, until it is told to stop.

In: one or more models by path or name, and, for their tabs, shards and a run folder. Out: nothing on disk;
the address is printed. SIGTERM and Ctrl-C end what is in work, turn away what waits, and stop.
"""

import ipaddress
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from kilopix.errors import UserError
from kilopix.progress import working
from kilopix.runtime import leave_terminal, pick_device, say
from kilopix.web.access import LOOPBACK, Access, checked_origin, checked_token
from kilopix.web.requests import Limits

if TYPE_CHECKING:
    import uvicorn

    from kilopix.web.guard import Guard
    from kilopix.web.page import Site
    from kilopix.web.worker import Worker

_GRACE = 30
"""Seconds that requests in work have to end in after a signal."""
_BACKLOG = 512


@dataclass(frozen=True)
class Doors:
    """Whom the user lets in, beside this machine: names of the server, origins of pages, and a token."""

    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    token: str | None = None
    no_token: bool = False


@dataclass(frozen=True)
class Prepared:
    """Everything that answers requests, not yet at an address."""

    app: "Guard"
    site: "Site"
    worker: "Worker"


def run(
    paths: Sequence[Path | str],
    host: str = "127.0.0.1",
    port: int = 7860,
    shards: Path | None = None,
    run_folder: Path | None = None,
    limits: Limits | None = None,
    device: str = "auto",
    doors: Doors | None = None,
) -> None:
    """Serve models until a signal; port 0 takes any that is free."""
    with listen(host, port) as listening:
        access = who_may_ask(doors or Doors(), is_loopback(listening))
        with prepare(paths, shards, run_folder, limits, device, access) as prepared:
            _serve(prepared, listening)


def who_may_ask(doors: Doors, only_here: bool) -> Access:
    """The rule for requests; where other machines can send them, there is a token unless that is declined."""
    if doors.token is not None and doors.no_token:
        raise UserError("--token and --no-token exclude one another; give one of them.")
    token = None if doors.token is None else checked_token(doors.token)
    if token is None and not only_here and not doors.no_token:
        token = secrets.token_urlsafe(24)
    hosts = (*LOOPBACK, *(name.lower() for name in doors.hosts)) if doors.hosts or only_here else None
    return Access(hosts, tuple(checked_origin(origin) for origin in doors.origins), token)


@contextmanager
def prepare(
    paths: Sequence[Path | str],
    shards: Path | None = None,
    run_folder: Path | None = None,
    limits: Limits | None = None,
    device: str = "auto",
    access: Access | None = None,
) -> Iterator[Prepared]:
    """Load models and build what answers for them."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("`kilopix serve` needs Gradio: pip install 'kilopix[serve]'.") from None
    from kilopix.web.data_view import DataView
    from kilopix.web.guard import Guard
    from kilopix.web.models import load_models
    from kilopix.web.page import build_site
    from kilopix.web.training_view import TrainingView
    from kilopix.web.worker import Worker

    limits, access = limits or Limits(), access or Access()
    with working("load the models"):
        models = load_models(paths, pick_device(device))
        for model in models.values():
            model.warm_up()
    first = next(iter(models.values()))
    data = DataView(shards, first) if shards else None
    folder = run_folder or _own_run(paths[0])
    worker = Worker(models, limits)
    try:
        training = TrainingView(folder, worker, first) if folder else None
        with build_site(worker, limits, data, training, access.token is not None) as site:
            yield Prepared(Guard(site.app, limits, access), site, worker)
    finally:
        worker.close(float(_GRACE))


def _own_run(given: Path | str) -> Path | None:
    """The run that a model's path is, if it has a log to show, or checkpoints and soon a log."""
    path = Path(given)
    shown = (path / "log.jsonl").is_file() or (path / "checkpoints").is_dir()
    return path if shown and (path / "recipe.json").is_file() else None


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; one that cannot be had is a `UserError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{host}:{port} cannot be used ({why}); choose another --port or --host.") from None


def configured(app: "Guard", grace: int = _GRACE) -> "uvicorn.Config":
    """How the server speaks HTTP."""
    import uvicorn

    from kilopix.web.connection import Connection

    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",  # what strangers send is not to fill the log
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,  # longer than clients keep theirs (often 5), which a closed one would surprise
        timeout_graceful_shutdown=grace,
    )


def _serve(prepared: Prepared, listening: socket.socket) -> None:
    """Answer requests until a signal; then let those in work end."""
    import uvicorn

    class Server(uvicorn.Server):
        """A server that turns away the queue, and hangs up on idle pages, before it waits for the rest."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                for line in _greeting(prepared, listening):
                    say(line)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            say("Stopping: what is in work is finished.")
            prepared.worker.drain()
            prepared.site.hang_up()
            await super().shutdown(sockets)

    server = Server(configured(prepared.app))
    with _signals_end_quietly(server):
        server.run([listening])


def _greeting(prepared: Prepared, listening: socket.socket) -> Iterator[str]:
    """Where the server is, and who can ask it."""
    url, token = address(listening), prepared.app.access.token
    yield f"{url}: serving {', '.join(prepared.worker.models)}; Ctrl-C stops."
    if token is not None:
        yield f"The page, with its token: {url}/?token={token}"
        yield f"Programs send `Authorization: Bearer {token}`."
    elif not is_loopback(listening):
        yield "No token: anyone who reaches this port can use the server."


def address(listening: socket.socket) -> str:
    """The address of a socket, for a browser."""
    host, port = listening.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


@contextmanager
def _signals_end_quietly(server: "uvicorn.Server") -> Iterator[None]:
    """A lost terminal stops the server as Ctrl-C does, unless it was started to outlive it.

    uvicorn raises the signals that it takes again when it has stopped for them; by then it has done all that
    they ask for.
    """
    numbers: dict[signal.Signals, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda *_: None)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:

        def hang_up(number: int, frame: FrameType | None) -> None:
            leave_terminal()
            server.handle_exit(number, frame)

        numbers[signal.SIGHUP] = hang_up
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
