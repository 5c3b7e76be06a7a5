"""Work on whole matrices, spread over processes: each matrix is worked on by one of them.

In: matrices of which every process has the whole (DDP) or some rows (FSDP2). Out: for every process, what the
work made of the same whole or rows. Who does what follows from shapes and the number of processes alone.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby, zip_longest

import torch
from torch import Tensor

from kilopix.training.parallel import Processes

Shape = tuple[int, int]
Round = tuple[tuple[int, ...], ...]
"""The matrices of each process, by number, whose parts are sent together."""


@lru_cache(maxsize=64)
def rounds(
    shapes: tuple[Shape, ...], cost: Callable[[Shape], float], processes: int, at_once: int
) -> tuple[Round, ...]:
    """Who works on which matrix, in rounds of about `at_once` elements of all processes together.

    The dearest matrix that is left goes to the process with the least to do, so that all have about as much.
    Matrices of one shape lie side by side.
    """
    loads = [0.0] * processes
    owned: list[list[list[int]]] = [[[]] for _ in range(processes)]
    sizes = [0] * processes
    for i in sorted(range(len(shapes)), key=lambda i: (-cost(shapes[i]), shapes[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += cost(shapes[i])
        size = _numel(shapes[i])
        if owned[rank][-1] and sizes[rank] + size > at_once // processes:
            owned[rank].append([])
            sizes[rank] = 0
        owned[rank][-1].append(i)
        sizes[rank] += size
    return tuple(
        tuple(tuple(mine or ()) for mine in together) for together in zip_longest(*owned) if any(together)
    )


def work_spread(
    parts: Tensor,
    owned: Round,
    shapes: Sequence[Shape],
    processes: Processes,
    work: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """What `work` makes of the matrices of a round, of each the part that this process holds.

    `parts` holds this process's parts of them one after the other, `work` gets all that a process owns of one
    shape at once, and gives as much in the same dtype. All processes must ask, and two collectives are what
    they exchange at most.
    """
    mine = [shapes[i] for i in owned[processes.rank]]
    stacks = [(shape, len(list(same))) for shape, same in groupby(mine)]
    if processes.sharded:
        return _by_rows(parts, owned, shapes, stacks, processes, work)
    sizes = [sum(_numel(shapes[i]) for i in theirs) for theirs in owned]
    own = parts.split(sizes)[processes.rank]
    done = own.new_zeros(max(sizes))
    stacked = own.split([count * _numel(shape) for shape, count in stacks])
    places = done[: own.numel()].split([count * _numel(shape) for shape, count in stacks])
    for (shape, count), matrices, place in zip(stacks, stacked, places, strict=True):
        place.view(count, *shape).copy_(work(matrices.view(count, *shape)))
    results = done
    if processes.count > 1:
        results = done.new_empty(processes.count * max(sizes))
        _all_gather(results, done)
    views: list[Tensor] = []
    for theirs, result in zip(owned, results.view(processes.count, -1), strict=True):
        views += _as_matrices(result, [shapes[i] for i in theirs])
    return views


def _by_rows(
    parts: Tensor,
    owned: Round,
    shapes: Sequence[Shape],
    stacks: Sequence[tuple[Shape, int]],
    processes: Processes,
    work: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """The same where every process holds some rows: they go to the matrix's owner, and what it made back."""
    ranks, rank = range(processes.count), processes.rank

    def held(shape: Shape, by: int) -> Shape:
        return rows_held(shape[0], by, processes.count), shape[1]

    sent = [sum(_numel(held(shapes[i], rank)) for i in theirs) for theirs in owned]
    received = [sum(count * _numel(held(shape, r)) for shape, count in stacks) for r in ranks]
    arrived = parts.new_empty(sum(received))
    torch.distributed.all_to_all_single(arrived, parts, received, sent)
    from_each = [
        part.split([count * _numel(held(shape, r)) for shape, count in stacks])
        for r, part in zip(ranks, arrived.split(received), strict=True)
    ]
    to_each: list[list[Tensor]] = [[] for _ in ranks]
    for k, (shape, count) in enumerate(stacks):
        whole = torch.cat([from_each[r][k].view(count, *held(shape, r)) for r in ranks], dim=1)
        rows = work(whole).split([held(shape, r)[0] for r in ranks], dim=1)
        for r in ranks:
            to_each[r].append(rows[r].flatten())
    leaving = torch.cat([parts.new_empty(0), *(part for theirs in to_each for part in theirs)])
    returned = torch.empty_like(parts)
    torch.distributed.all_to_all_single(returned, leaving, sent, received)
    return _as_matrices(returned, [held(shapes[i], rank) for theirs in owned for i in theirs])


def _all_gather(results: Tensor, own: Tensor) -> None:
    """By the name that this version of torch has for it; 2.13 warns of the one before."""
    name = "all_gather_single"
    if not hasattr(torch.distributed, name):
        name = "all_gather_into_tensor"
    getattr(torch.distributed, name)(results, own)


def rows_held(rows: int, rank: int, processes: int) -> int:
    """How many rows of a matrix a process holds under FSDP2: all as many, but for the last ones."""
    most = -(-rows // processes)
    return max(0, min(most, rows - rank * most))


def _as_matrices(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    sizes = [_numel(shape) for shape in shapes]
    pieces = flat[: sum(sizes)].split(sizes) if sizes else []
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _numel(shape: Shape) -> int:
    return shape[0] * shape[1]
