"""Engines: who makes the parts of a job, processes on this machine or actors on a Ray cluster.

In: the numbers of the missing parts, and a `Job` that makes one. Out: one file a part, written by the
worker that made it. A worker that dies loses its part, which goes to another; a driver that dies takes its
workers with it. On Ray, all nodes must see the folders of the job, as on a shared file system.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Protocol, runtime_checkable

from kilopix.runtime import say
from kilopix.types import UserError

Engine = Literal["local", "ray"]
MOST_DEATHS = 3
"""A part whose worker dies so often is not tried again: memory is short, or a file crashes a decoder."""


@runtime_checkable
class Job(Protocol):
    """What every worker is sent once: a value, so that it can be sent to another process."""

    def start(self, worker: int) -> Callable[[int], None]:
        """Settle worker number `worker`, and load what it needs; the function returned makes a part."""
        ...


class Deaths:
    """Counts the workers that died, by part."""

    def __init__(self):
        self._of = Counter[int]()

    def add(self, part: int, how: str) -> None:
        """Take in a death; the last that is borne is a `UserError`."""
        self._of[part] += 1
        if self._of[part] >= MOST_DEATHS:
            raise UserError(
                f"part {part}: {MOST_DEATHS} workers died while making it ({how}). If memory is short, give "
                "fewer --workers or --device; the same command goes on."
            )
        say(f"a worker died ({how}); another makes its part {part} again.")


def run_local(job: Job, missing: Sequence[int], workers: int, done: Callable[[int], None]) -> None:
    """Make the parts in `workers` processes on this machine; `done` is told of each part.

    One worker, or one part, needs no process: it is made in this one.
    """
    if min(workers, len(missing)) <= 1:
        make = job.start(0) if missing else None
        for part in missing:
            assert make is not None
            make(part)
            done(part)
        return
    team = [_Worker(job, number) for number in range(min(workers, len(missing)))]
    queue, deaths = deque(missing), Deaths()
    try:
        for worker in team:
            worker.take(queue)
        while busy := {worker.pipe: worker for worker in team if worker.part is not None}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                part = worker.part
                assert part is not None
                try:
                    answer = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    deaths.add(part, f"exit code {worker.process.exitcode}")
                    queue.appendleft(part)
                    team[worker.number] = worker = _Worker(job, worker.number)
                else:
                    if answer is not None:
                        raise answer
                    done(part)
                worker.take(queue)
    finally:
        for worker in team:
            worker.stop()


class _Worker:
    """One process and the part that it is making."""

    def __init__(self, job: Job, number: int):
        # Started afresh: a copy of a process that runs threads could hang.
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.part: int | None = None
        self.pipe, theirs = context.Pipe()
        name = f"worker {number}"
        self.process = context.Process(target=_work, args=(theirs, job, number), name=name, daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the process ends the pipe

    def take(self, queue: deque[int]) -> None:
        """Begin the next part, if there is one."""
        self.part = queue.popleft() if queue else None
        if self.part is not None:
            # If it died already, the wait for its answer finds that out.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.pipe.send(self.part)

    def stop(self) -> None:
        """End the process, whatever it is doing; a part that is not whole is left under a temporary name."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _work(pipe: Connection, job: Job, number: int) -> None:
    """A worker process: make the parts that are asked for, until the driver ends."""
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C and a lost terminal are the driver's affair
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    make = None
    while True:
        part = pipe.recv()
        try:
            make = make or job.start(number)
            make(part)
        except UserError as error:
            pipe.send(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver raises it
            pipe.send(RuntimeError(f"part {part}: {error!r}\n{traceback.format_exc()}"))
        else:
            pipe.send(None)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Actor:
    """What a Ray actor holds: the job, with the models that its first part loads."""

    def __init__(self, job: Job):
        self.make = job.start(0)  # of the GPUs, Ray shows it only its own

    def ready(self) -> None:
        """Answers as soon as the actor has a place on a node."""

    def do(self, part: int) -> None:
        """Make one part."""
        self.make(part)


def run_ray(
    job: Job, missing: Sequence[int], workers: int | None, wants_gpu: bool, done: Callable[[int], None]
) -> None:
    """Make the parts in actors on the Ray cluster that `RAY_ADDRESS` names, or that runs here.

    One actor for every core, or every GPU, that the cluster has, also of nodes that join later, but at
    most `workers`; nodes may leave.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayActorError, RayTaskError  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--engine ray: Ray is not installed; run `pip install 'kilopix[cluster]'`.") from None

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    on_gpu = wants_gpu and ray.cluster_resources().get("GPU", 0) > 0
    resource = "GPU" if on_gpu else "CPU"
    kind = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0)(_Actor)
    queue, deaths, left = deque(missing), Deaths(), len(missing)
    waiting: dict[Any, tuple[Any, int | None]] = {}  # of each call: its actor, and the part or None
    idle: list[Any] = []
    failed_starts = 0
    try:
        while left:
            wanted = min(workers or left, left, int(ray.cluster_resources().get(resource, 0)) or 1)
            for _ in range(wanted - len(waiting) - len(idle)):
                actor = kind.remote(job)
                waiting[actor.ready.remote()] = (actor, None)  # it gets a part once it has a place
            while idle and queue:
                actor, part = idle.pop(), queue.popleft()
                waiting[actor.do.remote(part)] = (actor, part)
            for call in ray.wait(list(waiting), num_returns=1, timeout=5)[0]:
                actor, part = waiting.pop(call)
                try:
                    ray.get(call)
                except RayActorError as error:
                    if part is None:
                        failed_starts += 1
                        if failed_starts >= MOST_DEATHS:
                            raise UserError(f"Ray's actors do not start; is kilopix there? {error}") from None
                    else:
                        deaths.add(part, type(error).__name__)
                        queue.appendleft(part)
                    continue
                except RayTaskError as error:
                    raise error.cause from None
                idle.append(actor)
                failed_starts = 0
                if part is not None:
                    left -= 1
                    done(part)
    finally:
        for actor in [*idle, *(actor for actor, _ in waiting.values())]:
            ray.kill(actor)
