"""How sure a mean score is: bootstrap intervals over prompts, for one model and for the difference of two.

In: one value a picture, with its prompt and its task. Out: an `Interval`.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from kilopix.runtime import seed_from
from kilopix.types import UserError

_CELLS = 1 << 22  # numbers of resampled weights held at once


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Observations:
    """One value a picture, and the numbers of its prompt and of its task; build it with `observe`.

    Its score is the mean over tasks of the mean over the pictures of each task. `keys` holds (prompt, task)
    by the number of the prompt.
    """

    values: Float64[np.ndarray, " n"]
    prompts: Int64[np.ndarray, " n"]
    prompt_tasks: Int64[np.ndarray, " p"]
    keys: tuple[Hashable, ...]


def observe(
    values: Sequence[float], prompts: Sequence[Hashable], tasks: Sequence[Hashable] | None = None
) -> Observations:
    """Gather the values of pictures; pictures of one prompt name it by the same key.

    Without `tasks` all prompts are of one. Raises `UserError` if the lengths differ, if there is nothing, or
    if a prompt is in two tasks.
    """
    tasks = [0] * len(values) if tasks is None else tasks
    if not len(values) == len(prompts) == len(tasks) or not len(values):
        sizes = f"{len(values)} values, {len(prompts)} prompts, {len(tasks)} tasks"
        raise UserError(f"give one value, prompt and task for each of at least one picture (got {sizes}).")
    task_of: dict[Hashable, Hashable] = {}
    for prompt, task in zip(prompts, tasks, strict=True):
        if task_of.setdefault(prompt, task) != task:
            raise UserError(f"prompt {prompt!r} is in two tasks: {task_of[prompt]!r} and {task!r}.")
    number = {prompt: i for i, prompt in enumerate(task_of)}
    task_number = {task: i for i, task in enumerate(dict.fromkeys(task_of.values()))}
    return Observations(
        np.asarray(values, dtype=np.float64),
        np.array([number[prompt] for prompt in prompts], dtype=np.int64),
        np.array([task_number[task] for task in task_of.values()], dtype=np.int64),
        tuple(task_of.items()),
    )


def bootstrap(scores: Observations, resamples: int = 5000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of a score: the prompts of each task are drawn anew, with all their pictures.

    Efron and Tibshirani 1993, section 13.3. With one prompt a task it has no width.
    """
    sums, counts = _by_prompt(scores)
    draws = np.concatenate(
        [
            _task_means(weights, sums, counts, scores.prompt_tasks)
            for weights in _weights(scores.prompt_tasks, resamples, seed)
        ]
    )
    value = _task_means(np.ones((1, len(sums))), sums, counts, scores.prompt_tasks)[0]
    return percentile_interval(float(value), draws, level)


def paired_bootstrap(
    a: Observations, b: Observations, resamples: int = 5000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of the score of `a` less that of `b`, both over the same prompts drawn anew.

    Raises `UserError` if the two do not hold the same prompts.
    """
    order = {key: i for i, key in enumerate(b.keys)}
    if len(order) != len(a.keys) or any(key not in order for key in a.keys):
        raise UserError("a paired difference needs scores over the same prompts and tasks; these differ.")
    index = np.array([order[key] for key in a.keys])
    (sums_a, counts_a), (sums_b, counts_b) = _by_prompt(a), _by_prompt(b)
    sums_b, counts_b = sums_b[index], counts_b[index]

    def difference(weights: np.ndarray) -> np.ndarray:
        mean_a = _task_means(weights, sums_a, counts_a, a.prompt_tasks)
        return mean_a - _task_means(weights, sums_b, counts_b, a.prompt_tasks)

    draws = np.concatenate([difference(weights) for weights in _weights(a.prompt_tasks, resamples, seed)])
    return percentile_interval(float(difference(np.ones((1, len(sums_a))))[0]), draws, level)


def percentile_interval(value: float, draws: Float64[np.ndarray, " r"], level: float = 0.95) -> Interval:
    """The estimate between the percentiles that leave out (1 - level) / 2 of the draws on either side."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def wilson_interval(share: float, n: int) -> Interval:
    """The 95% interval of a share of `n` independent trials (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, middle - half, middle + half)


def _by_prompt(scores: Observations) -> tuple[np.ndarray, np.ndarray]:
    size = len(scores.prompt_tasks)
    sums = np.bincount(scores.prompts, weights=scores.values, minlength=size)
    return sums, np.bincount(scores.prompts, minlength=size).astype(np.float64)


def _weights(prompt_tasks: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (resamples, prompts) of how often each prompt is drawn; every task keeps its number."""
    tasks = [np.flatnonzero(prompt_tasks == task) for task in np.unique(prompt_tasks)]
    rngs = [np.random.default_rng(seed_from(seed, task)) for task in range(len(tasks))]
    block = max(1, _CELLS // len(prompt_tasks))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        weights = np.empty((rows, len(prompt_tasks)))
        for columns, rng in zip(tasks, rngs, strict=True):
            chances = np.full(len(columns), 1 / len(columns))
            weights[:, columns] = rng.multinomial(len(columns), chances, size=rows)
        yield weights


def _task_means(
    weights: np.ndarray, sums: np.ndarray, counts: np.ndarray, prompt_tasks: np.ndarray
) -> np.ndarray:
    means = []
    for task in np.unique(prompt_tasks):
        columns = prompt_tasks == task
        means.append(weights[:, columns] @ sums[columns] / (weights[:, columns] @ counts[columns]))
    return np.mean(means, axis=0)
