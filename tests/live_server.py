"""A server of tiny models at a real address, as `kilopix serve` makes it."""

import faulthandler
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from safetensors.torch import save_file

from kilopix.stages.serve import address, configured, listen, prepare
from kilopix.training.checkpoint import read_weights
from kilopix.web.access import Access
from kilopix.web.requests import Limits
from kilopix.web.worker import Worker

JOBS = "/v1/images/generations"


@dataclass(frozen=True)
class Live:
    """Where the server is, and its worker, to look into."""

    url: str
    worker: Worker


def lively_run(run: Path, out: Path) -> Path:
    """A copy of a run whose weights are shaken, so that its pictures depend on their prompts."""
    tensors, header = read_weights(run / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    shaken = {
        name: value + 0.15 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()
    }
    out.mkdir(parents=True)
    save_file(shaken, out / "model.safetensors", {key: json.dumps(value) for key, value in header.items()})
    for name in ("codec.safetensors", "recipe.json", "log.jsonl"):
        shutil.copy(run / name, out)
    shutil.copytree(run / "checkpoints", out / "checkpoints")
    return out


@contextmanager
def live_server(
    paths: list[Path],
    limits: Limits | None = None,
    shards: Path | None = None,
    run_folder: Path | None = None,
    access: Access | None = None,
) -> Iterator[Live]:
    with (
        listen("127.0.0.1", 0) as listening,
        prepare(paths, shards, run_folder, limits, "cpu", access) as prepared,
    ):
        server = uvicorn.Server(configured(prepared.app, grace=1))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Live(address(listening), prepared.worker)
        finally:
            prepared.site.hang_up()
            server.should_exit = True
            stop(thread, server)


def stop(thread: threading.Thread, server: uvicorn.Server) -> None:
    """Wait for the server; one that does not end says where it hangs, and fails the test."""
    thread.join(30)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)
        server.force_exit = True
        thread.join(30)
        pytest.fail("the server did not end in 30 seconds; where it hung is on stderr")


def wait_until(true: Callable[[], object]) -> None:
    ended = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ended, "it did not come about"
        time.sleep(0.01)


def hold(worker: Worker) -> threading.Event:
    """Keep the worker busy until the event is set."""
    go = threading.Event()
    worker.call(lambda: go.wait(60))
    wait_until(lambda: worker.running)
    return go


def post(client: httpx.Client, **fields: Any) -> httpx.Response:
    """Ask for pictures."""
    return client.post(JOBS, json=fields)
