"""The worker: one thread that owns the models, a bounded queue before it, and tickets for those who wait.

In: orders from any thread. Out: their pictures, as futures. Orders of the same model and settings are made
in one batch; a picture does not depend on what else is in it. Who leaves is dropped, and the first in the
queue is always served next.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from PIL import Image
from torch import Tensor

from kilopix.web.models import ServedModel
from kilopix.web.requests import Limits, Order

_PREVIEW_SHARE = 0.2
"""Of the time for a batch, what previews may take: after one, this many times as long none is made."""
_REMEMBERED = 0.3

T = TypeVar("T")


@dataclass(frozen=True)
class Preview:
    """How far an order is: steps done of all, and, now and then, what its pictures look like so far."""

    step: int
    steps: int
    images: list[Image.Image] | None = None


OnPreview = Callable[[Preview], None]


class QueueFull(RuntimeError):
    """No more may wait; come back after `retry_after` seconds."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} seconds.")
        self.retry_after = retry_after


class Closing(RuntimeError):
    """The server is being shut down."""

    def __init__(self):
        super().__init__("the server is shutting down; try again later.")


class _AllLeft(RuntimeError):
    """Nobody waits for this batch any more."""


@dataclass(eq=False)
class Ticket(Generic[T]):
    """A place in the queue; `future` gives what was asked for, `drop` says that nobody waits for it."""

    work: Order | Callable[[], T]
    on_preview: OnPreview | None = None
    future: "Future[T]" = field(default_factory=Future)
    dropped: bool = False

    def drop(self) -> None:
        """Leave: out of the queue, or out of the batch at its next step."""
        self.dropped = True
        self.future.cancel()

    @property
    def size(self) -> int:
        """How many pictures it stands for."""
        return len(self.work.jobs) if isinstance(self.work, Order) else 1


class Worker:
    """One thread that makes the pictures of all orders; `close` it when done."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits):
        self.models = dict(models)
        self.limits = limits
        self.made = 0
        self._waiting: deque[Ticket[Any]] = deque()
        self._running: list[Ticket[Any]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_picture = 1.0
        self._thread = threading.Thread(target=self._run, name="kilopix-worker", daemon=True)
        self._thread.start()

    def submit(self, order: Order, on_preview: OnPreview | None = None) -> Ticket[list[Image.Image]]:
        """Take an order; `on_preview` is called from the worker's thread."""
        assert order.model in self.models
        return self._add(Ticket(order, on_preview))

    def call(self, work: Callable[[], T]) -> Ticket[T]:
        """Have a function called on the thread that owns the models, in its turn."""
        return self._add(Ticket(work))

    def _add(self, ticket: Ticket[T]) -> Ticket[T]:
        with self._changed:
            if self._closing:
                raise Closing
            self._forget_dropped()
            if len(self._waiting) >= self.limits.queue:
                raise QueueFull(len(self._waiting), self._retry_after())
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def _retry_after(self) -> int:
        pictures = sum(ticket.size for ticket in self._waiting)
        return max(1, min(600, math.ceil(pictures * self._seconds_per_picture)))

    def _forget_dropped(self) -> None:
        for ticket in [t for t in self._waiting if t.dropped]:
            self._waiting.remove(ticket)

    def ahead(self, ticket: Ticket[Any]) -> int:
        """How many are to be served before this one; 0 when it is in work or done."""
        with self._changed:
            before = [t for t in self._waiting if not t.dropped]
            return before.index(ticket) + bool(self._running) if ticket in before else 0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._changed:
            self._forget_dropped()
            return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in work."""
        with self._changed:
            return len(self._running)

    @property
    def alive(self) -> bool:
        """Whether orders are still made."""
        return self._thread.is_alive()

    def drain(self) -> None:
        """Take no more, turn away those who wait, and end after what is in work."""
        with self._changed:
            self._closing = True
            for ticket in self._waiting:
                if ticket.future.set_running_or_notify_cancel():
                    ticket.future.set_exception(Closing())
            self._waiting.clear()
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Drain, and wait for the thread."""
        self.drain()
        self._thread.join(timeout)

    def _run(self) -> None:
        while tickets := self._next():
            try:
                self._serve(tickets)
            finally:
                with self._changed:
                    self._running = []

    def _next(self) -> list[Ticket[Any]]:
        """The first in the queue, and those behind it that fit into its batch; empty at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                chosen: list[Ticket[Any]] = []
                for ticket in list(self._waiting):
                    if not ticket.dropped and not self._fits(ticket, chosen):
                        continue
                    self._waiting.remove(ticket)
                    if ticket.future.set_running_or_notify_cancel():
                        chosen.append(ticket)
                if chosen:
                    self._running = chosen
                    return chosen

    def _fits(self, ticket: Ticket[Any], chosen: list[Ticket[Any]]) -> bool:
        if not chosen:
            return True
        first, order = chosen[0].work, ticket.work
        if not isinstance(first, Order) or not isinstance(order, Order):
            return False
        if sum(t.size for t in chosen) + ticket.size > self.limits.batch:
            return False
        return (order.model, order.sampling) == (first.model, first.sampling)

    def _serve(self, tickets: list[Ticket[Any]]) -> None:
        """Answer every ticket; where a batch fails, each of its orders is tried alone, so that one cannot
        spoil the others."""
        try:
            results = self._results(tickets)
        except _AllLeft:
            results = [None] * len(tickets)
        except Exception as error:  # noqa: BLE001 - the thread outlives every order, and its owner is told
            if len(tickets) > 1:
                for ticket in tickets:
                    self._serve([ticket])
            else:
                tickets[0].future.set_exception(error)
            return
        for ticket, result in zip(tickets, results, strict=True):
            ticket.future.set_result(result)

    def _results(self, tickets: list[Ticket[Any]]) -> list[Any]:
        work = tickets[0].work
        if not isinstance(work, Order):
            return [work()]
        started = time.monotonic()
        images = self._make(work, tickets)
        each = (time.monotonic() - started) / len(images)
        self._seconds_per_picture += _REMEMBERED * (each - self._seconds_per_picture)
        self.made += len(images)
        return [[images.pop(0) for _ in range(ticket.size)] for ticket in tickets]

    def _make(self, order: Order, tickets: list[Ticket[Any]]) -> list[Image.Image]:
        """The pictures of tickets that share model and settings, a batch at a time."""
        model, size = self.models[order.model], self.limits.batch
        owners = [ticket for ticket in tickets for _ in range(ticket.size)]
        jobs = [job for ticket in tickets for job in ticket.work.jobs]
        starts = range(0, len(jobs), size)
        previews = _Previews(model, tickets, len(starts) * order.sampling.steps)
        images: list[Image.Image] = []
        for number, start in enumerate(starts):
            previews.begin(number * order.sampling.steps, owners[start : start + size])
            images += model.make(jobs[start : start + size], order.sampling, previews.on_step)
        return images


class _Previews:
    """Tells the owners of a batch how far it is, and stops it when all have left."""

    def __init__(self, model: ServedModel, tickets: list[Ticket[Any]], steps: int):
        self._model = model
        self._tickets = tickets
        self._steps = steps
        self._before = 0
        self._places: dict[Ticket[Any], list[int]] = {}
        self._quiet_until = 0.0

    def begin(self, before: int, owners: list[Ticket[Any]]) -> None:
        """The next batch, after so many steps: whose picture is at each of its places."""
        self._before = before
        self._places = {}
        for place, owner in enumerate(owners):
            self._places.setdefault(owner, []).append(place)

    def on_step(self, step: int, state: Tensor, data: Tensor) -> None:
        """After a step: what the data are predicted to be."""
        if all(ticket.dropped for ticket in self._tickets):
            raise _AllLeft
        started = time.monotonic()
        looks = started >= self._quiet_until
        for ticket, places in self._places.items():
            if ticket.on_preview is None or ticket.dropped:
                continue
            seen = self._model.pictures(data[places]) if looks else None
            ticket.on_preview(Preview(self._before + step + 1, self._steps, seen))
        if looks:
            ended = time.monotonic()
            self._quiet_until = ended + (ended - started) / _PREVIEW_SHARE
