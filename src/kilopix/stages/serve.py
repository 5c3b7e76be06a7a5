"""Weights to a web page and a REST endpoint, until it is told to stop.

In: one or more models by path or name, and, for their tabs, shards and a run folder. Out: nothing on disk;
the address is printed. SIGTERM and Ctrl-C end what is in work, turn away what waits, and stop.
"""

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kilopix.errors import UserError
from kilopix.progress import working
from kilopix.runtime import pick_device, say
from kilopix.web.requests import Limits

if TYPE_CHECKING:
    from kilopix.web.guard import Guard
    from kilopix.web.page import Site
    from kilopix.web.worker import Worker

_GRACE = 30
"""Seconds that requests in work have to end in after a signal."""
_BACKLOG = 512


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
    allow_hosts: Sequence[str] = (),
) -> None:
    """Serve models until a signal; port 0 takes any that is free."""
    names = allow_hosts if allow_hosts or is_loopback(host) else None
    with (
        listen(host, port) as listening,
        prepare(paths, shards, run_folder, limits or Limits(), device, names) as prepared,
    ):
        _serve(prepared, listening)


@contextmanager
def prepare(
    paths: Sequence[Path | str],
    shards: Path | None = None,
    run_folder: Path | None = None,
    limits: Limits | None = None,
    device: str = "auto",
    names: Sequence[str] | None = (),
) -> Iterator[Prepared]:
    """Load models and build what answers for them; `names` beside loopback's are answered to, None is any."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("`kilopix serve` needs Gradio: pip install 'kilopix[serve]'.") from None
    from kilopix.web.data_view import DataView
    from kilopix.web.guard import LOOPBACK, Guard
    from kilopix.web.models import load_models
    from kilopix.web.page import build_site
    from kilopix.web.training_view import TrainingView
    from kilopix.web.worker import Worker

    limits = limits or Limits()
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
        with build_site(worker, limits, data, training) as site:
            hosts = None if names is None else [*LOOPBACK, *names]
            yield Prepared(Guard(site.app, limits, hosts), site, worker)
    finally:
        worker.close(float(_GRACE))


def _own_run(given: Path | str) -> Path | None:
    """The run that a model's path is, if it has a log to show, or checkpoints and soon a log."""
    path = Path(given)
    shown = (path / "log.jsonl").is_file() or (path / "checkpoints").is_dir()
    return path if shown and (path / "recipe.json").is_file() else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; one that cannot be had is a `UserError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{host}:{port} cannot be used ({why}); choose another --port or --host.") from None


def _serve(prepared: Prepared, listening: socket.socket) -> None:
    """Answer requests until a signal; then let those in work end."""
    import uvicorn

    class Server(uvicorn.Server):
        """A server that turns away the queue, and hangs up on idle pages, before it waits for the rest."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say(f"{address(listening)}: serving {', '.join(prepared.worker.models)}; Ctrl-C stops.")

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            say("Stopping: what is in work is finished.")
            prepared.worker.drain()
            prepared.site.hang_up()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        prepared.app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        ws="none",
    )
    with _signals_end_quietly():
        Server(config).run([listening])


def address(listening: socket.socket) -> str:
    """The address of a socket, for a browser."""
    host, port = listening.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn raises a signal again when it has stopped for it; by then it has done all that it asks for."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
