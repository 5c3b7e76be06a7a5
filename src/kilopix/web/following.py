"""Orders followed as they are made, for a page that shows how they come along.

In: orders. Out: an asynchronous walk over how far each is. Who stops walking drops the orders.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from PIL import Image

from kilopix.web.requests import Order
from kilopix.web.worker import Preview, Ticket, Worker

_LOOK_EVERY = 0.5
_REST = 0.1  # seconds between two looks at least, which is as often as a browser can draw them


@dataclass
class Sight:
    """How far one order is: requests ahead of it, steps done, and its pictures so far or at the end."""

    order: Order
    ahead: int = 0
    step: int = 0
    steps: int = 0
    images: list[Image.Image] | None = None
    done: bool = False


async def follow(worker: Worker, orders: Sequence[Order]) -> AsyncIterator[list[Sight]]:
    """Hand in orders, and yield a sight of each at every change until all are done."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    sights = [Sight(order) for order in orders]
    tickets: list[Ticket[list[Image.Image]]] = []

    def note(sight: Sight, preview: Preview) -> None:
        sight.step, sight.steps = preview.step, preview.steps
        sight.images = preview.images or sight.images
        loop.call_soon_threadsafe(changed.set)

    try:
        for sight in sights:
            tickets.append(worker.submit(sight.order, lambda seen, sight=sight: note(sight, seen)))
        futures = [asyncio.wrap_future(ticket.future) for ticket in tickets]
        for future in futures:
            future.add_done_callback(lambda _: changed.set())
        while not all(sight.done for sight in sights):
            for sight, ticket, future in zip(sights, tickets, futures, strict=True):
                sight.ahead = worker.ahead(ticket)
                if future.done() and not sight.done:
                    sight.images, sight.done = future.result(), True
            yield sights
            before = time.monotonic()
            try:
                await asyncio.wait_for(changed.wait(), _LOOK_EVERY)
            except TimeoutError:
                continue
            changed.clear()
            await asyncio.sleep(max(0.0, _REST - (time.monotonic() - before)))
    finally:
        for ticket in tickets:
            ticket.drop()
