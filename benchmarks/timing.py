"""How long pieces of work take, in seconds of the processor, side by side.

In: pieces of work. Out: the median seconds of each.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median


def side_by_side(works: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """The median of several rounds, in each of which all are done once, after one that is not counted.

    On one core the processor's seconds are those of a clock, but for other programs that share the core;
    what slows the machine for a while slows all pieces alike.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if number:
                times[name].append(time.process_time() - started)
    return {name: median(all_of) for name, all_of in times.items()}
