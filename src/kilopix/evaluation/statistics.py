"""How sure a score is: 95% intervals over prompts, for one model and for the difference of two.

In: one value an image, with its prompt and its task. Out: an `Interval`. Shares, where an image is right or
wrong, have Wilson's interval, which holds at 0 of n too, where a bootstrap draws nothing but zeros; other
means have bootstrap intervals.
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
    by the number of the prompt. `most` is the value of an image that is right in all, where 0 is one that is
    wrong in all; None where values have no such ends.
    """

    values: Float64[np.ndarray, " n"]
    prompts: Int64[np.ndarray, " n"]
    prompt_tasks: Int64[np.ndarray, " p"]
    keys: tuple[Hashable, ...]
    most: float | None = None

    @property
    def shares(self) -> bool:
        """Whether every image is right or wrong in all."""
        return self.most is not None and bool(np.isin(self.values, (0.0, self.most)).all())


def observe(
    values: Sequence[float],
    prompts: Sequence[Hashable],
    tasks: Sequence[Hashable] | None = None,
    most: float | None = None,
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
        most,
    )


def interval(scores: Observations, resamples: int = 5000) -> Interval:
    """The 95% interval of a score: of shares where it is one, else by a bootstrap."""
    return share_interval(scores) if scores.shares else bootstrap(scores, resamples)


def difference_interval(a: Observations, b: Observations) -> Interval:
    """The 95% interval of the score of `a` less that of `b`, which have the same prompts."""
    return share_difference(a, b) if a.shares and b.shares else paired_bootstrap(a, b)


def share_interval(scores: Observations) -> Interval:
    """The 95% interval of a share, or of the mean of the shares of several tasks.

    Images of one prompt are not independent, so each task has Wilson's interval of its effective number of
    images, n = p (1 - p) / v with v the variance over prompts (Korn and Graubard 1998; Franco et al. 2019),
    at least the number of prompts, at most that of images. Where p is 0 or 1 no variance can be seen, and n
    is the number of prompts. The mean of tasks joins their intervals by MOVER (Zou, Huang and Zhang 2009).
    """
    most = scores.most or 1.0
    parts = _task_shares(scores)
    value = sum(part.value for part in parts) / len(parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(most * value, most * max(0.0, value - below), most * min(1.0, value + above))


def share_difference(a: Observations, b: Observations) -> Interval:
    """The 95% interval of a difference of shares over the same prompts: Newcombe 1998b, method 8.

    It joins the intervals of both with the correlation of their prompts. Raises `UserError` if the two do not
    hold the same prompts.
    """
    order = _same_prompts(a, b)
    most = a.most or 1.0
    pairs = list(zip(_task_shares(a), _task_shares(b, order, a.prompt_tasks), strict=True))
    value = sum(one.value - other.value for one, other in pairs) / len(pairs)
    below = math.sqrt(sum(_joined(one, other) for one, other in pairs)) / len(pairs)
    above = math.sqrt(sum(_joined(other, one) for one, other in pairs)) / len(pairs)
    return Interval(most * value, most * max(-1.0, value - below), most * min(1.0, value + above))


@dataclass(frozen=True)
class _Share(Interval):
    """The share of one task, and how far each of its prompts moves it."""

    pulls: Float64[np.ndarray, " p"]


def _task_shares(
    scores: Observations, order: np.ndarray | None = None, prompt_tasks: np.ndarray | None = None
) -> list[_Share]:
    """The share of each task, its prompts in the order that is given."""
    sums, counts = _by_prompt(scores)
    prompt_tasks = scores.prompt_tasks if prompt_tasks is None else prompt_tasks
    if order is not None:
        sums, counts = sums[order], counts[order]
    return [
        _one_share(sums[prompt_tasks == task] / (scores.most or 1.0), counts[prompt_tasks == task])
        for task in np.unique(prompt_tasks)
    ]


def _one_share(right: np.ndarray, images: np.ndarray) -> _Share:
    total, prompts = float(images.sum()), len(right)
    share = float(right.sum()) / total
    pulls = (right - share * images) / total
    variance = float((pulls**2).sum()) * prompts / max(1, prompts - 1)
    size = float(prompts)
    if 0 < share < 1 and prompts > 1:
        size = min(total, max(size, share * (1 - share) / variance if variance else total))
    ends = wilson_interval(share, size)
    return _Share(share, ends.low, ends.high, pulls)


def _joined(one: _Share, other: _Share) -> float:
    """The square of how far `one` less `other` may lie below its estimate."""
    down, up = one.value - one.low, other.high - other.value
    lengths = math.sqrt(float((one.pulls**2).sum() * (other.pulls**2).sum()))
    correlation = float(one.pulls @ other.pulls) / lengths if lengths else 0.0
    return max(0.0, down * down - 2 * correlation * down * up + up * up)


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
    index = _same_prompts(a, b)
    (sums_a, counts_a), (sums_b, counts_b) = _by_prompt(a), _by_prompt(b)
    sums_b, counts_b = sums_b[index], counts_b[index]

    def difference(weights: np.ndarray) -> np.ndarray:
        mean_a = _task_means(weights, sums_a, counts_a, a.prompt_tasks)
        return mean_a - _task_means(weights, sums_b, counts_b, a.prompt_tasks)

    draws = np.concatenate([difference(weights) for weights in _weights(a.prompt_tasks, resamples, seed)])
    return percentile_interval(float(difference(np.ones((1, len(sums_a))))[0]), draws, level)


def _same_prompts(a: Observations, b: Observations) -> Int64[np.ndarray, " p"]:
    """Where the prompts of `a` are in `b`."""
    order = {key: i for i, key in enumerate(b.keys)}
    if len(order) != len(a.keys) or any(key not in order for key in a.keys):
        raise UserError("a paired difference needs scores over the same prompts and tasks; these differ.")
    return np.array([order[key] for key in a.keys])


def percentile_interval(value: float, draws: Float64[np.ndarray, " r"], level: float = 0.95) -> Interval:
    """The estimate between the percentiles that leave out (1 - level) / 2 of the draws on either side."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def wilson_interval(share: float, n: int | float) -> Interval:
    """The 95% interval of a share of `n` independent trials (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(share, min(share, low), max(share, high))  # at 0 and 1 sums round past them


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
