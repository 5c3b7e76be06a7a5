import math

import numpy as np
import pytest

from kilopix.evaluation import statistics
from kilopix.evaluation.statistics import (
    bootstrap,
    difference_interval,
    interval,
    observe,
    paired_bootstrap,
    percentile_interval,
    share_interval,
    wilson_interval,
)
from kilopix.types import UserError


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(observe(values.tolist(), range(400)))
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_pictures_of_one_prompt_are_drawn_together():
    per_prompt = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    values = np.repeat(per_prompt, 16).tolist()
    prompts = np.repeat(np.arange(50), 16).tolist()
    once = bootstrap(observe(per_prompt.tolist(), range(50)))
    repeated = bootstrap(observe(values, prompts))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    apart = bootstrap(observe(values, range(800)))
    assert (apart.high - apart.low) == pytest.approx((once.high - once.low) / 4, rel=0.1)


def test_the_score_is_the_mean_of_the_tasks_and_tasks_keep_their_prompts():
    values, tasks = [1.0] * 90 + [0.0] * 10, ["easy"] * 90 + ["hard"] * 10
    found = bootstrap(observe(values, range(100), tasks))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    mixed = bootstrap(observe(values, range(100)))
    assert mixed.value == pytest.approx(0.9)
    assert mixed.low < mixed.value < mixed.high


def test_prompts_with_more_pictures_weigh_more():
    assert bootstrap(observe([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])).value == 0.75


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        chances = rng.beta(2, 2, 60)
        images = rng.random((60, 4)) < chances[:, None]
        scores = observe(images.ravel().astype(float).tolist(), np.repeat(np.arange(60), 4).tolist())
        found = bootstrap(scores, resamples=500, seed=trial)
        hits += found.low <= 0.5 <= found.high
    assert 178 <= hits <= 199


def test_a_seed_gives_the_same_interval_in_any_blocks(monkeypatch):
    scores = observe(np.random.default_rng(0).random(30).tolist(), range(30), ["a"] * 20 + ["b"] * 10)
    one = bootstrap(scores, resamples=100, seed=4)
    assert one == bootstrap(scores, resamples=100, seed=4)
    assert one != bootstrap(scores, resamples=100, seed=5)
    monkeypatch.setattr(statistics, "_CELLS", 30 * 7)
    blocked = bootstrap(scores, resamples=100, seed=4)
    assert (blocked.low, blocked.high) == pytest.approx((one.low, one.high), rel=1e-12)


def test_a_paired_difference_is_surer_than_two_intervals_and_knows_prompts_by_name():
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    a = observe((hard + 0.05 + 0.01 * rng.random(200)).tolist(), range(200))
    order = rng.permutation(200)
    b = observe(hard[order].tolist(), order.tolist())
    found = paired_bootstrap(a, b)
    assert found.value == pytest.approx(a.values.mean() - b.values.mean())
    assert 0.05 < found.low < found.high < 0.06
    alone = bootstrap(a)
    assert (alone.high - alone.low) > 10 * (found.high - found.low)
    assert paired_bootstrap(a, a).low == paired_bootstrap(a, a).high == 0


def test_a_paired_difference_takes_other_numbers_of_pictures():
    a = observe([1.0, 0.0, 1.0, 1.0], ["x", "x", "y", "y"])
    b = observe([0.0, 1.0], ["y", "x"])
    assert paired_bootstrap(a, b).value == 0.25


def test_the_level_sets_what_is_left_out():
    draws = np.arange(101, dtype=np.float64)
    found = percentile_interval(50.0, draws, 0.9)
    assert (found.value, found.low, found.high) == pytest.approx((50, 5, 95))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="1 values, 2 prompts"):
        observe([1.0], ["a", "b"])
    with pytest.raises(UserError, match="at least one picture"):
        observe([], [])
    with pytest.raises(UserError, match="'a' is in two tasks"):
        observe([1.0, 0.0], ["a", "a"], ["t", "u"])
    with pytest.raises(UserError, match="same prompts"):
        paired_bootstrap(observe([1.0], ["a"]), observe([1.0], ["b"]))
    with pytest.raises(UserError, match="same prompts"):
        paired_bootstrap(observe([1.0, 1.0], ["a", "b"]), observe([1.0], ["a"]))


def test_one_prompt_has_no_width():
    found = bootstrap(observe([1.0, 0.0], ["a", "a"]))
    assert found.low == found.high == found.value == 0.5
    assert math.isfinite(found.low)


def test_wilsons_interval():
    found = wilson_interval(0.5, 100)
    assert (found.low, found.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(1.0, 20).high == pytest.approx(1)


def test_nothing_right_of_32_is_not_surely_nothing():
    none = interval(observe([0.0] * 32, range(32), most=1.0))
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(wilson_interval(0.0, 32).high) == pytest.approx(0.107, abs=1e-3)
    every = interval(observe([100.0] * 32, range(32), most=100.0))
    assert (every.value, every.high) == (100, 100)
    assert every.low == pytest.approx(89.3, abs=0.1)
    tasks = [i // 32 for i in range(192)]
    mean = interval(observe([0.0] * 64 + [1.0] * 128, range(192), tasks, most=1.0))
    assert mean.value == pytest.approx(2 / 3)
    assert mean.low < mean.value < mean.high


def test_images_of_one_prompt_count_once_where_they_are_alike():
    alike = interval(
        observe(np.repeat([0.0, 1.0] * 4, 4).tolist(), np.repeat(range(8), 4).tolist(), most=1.0)
    )
    assert (alike.low, alike.high) == pytest.approx(
        (wilson_interval(0.5, 8).low, wilson_interval(0.5, 8).high)
    )
    apart = interval(observe([0.0, 1.0] * 16, range(32), most=1.0))
    assert apart.high - apart.low < 0.7 * (alike.high - alike.low)
    mixed = interval(observe([0.0, 1.0] * 16, np.repeat(range(8), 4).tolist(), most=1.0))
    assert mixed.high == pytest.approx(apart.high), "prompts that do not differ are no less than their images"


def test_values_without_ends_keep_the_bootstrap():
    values = np.random.default_rng(0).normal(size=20).tolist()
    assert interval(observe(values, range(20))) == bootstrap(observe(values, range(20)))
    assert interval(observe([0.0, 1.0], range(2))) == bootstrap(observe([0.0, 1.0], range(2)))
    scores = observe([0.5, 0.7, 1.0], range(3), most=1.0)
    assert interval(scores) == bootstrap(scores)


@pytest.mark.parametrize(
    ("share", "tasks", "prompts", "images", "alike"),
    [
        (0.02, 1, 8, 4, 0.3),
        (0.1, 1, 32, 1, 0.0),
        (0.5, 1, 8, 4, 0.3),
        (0.1, 6, 8, 4, 0.3),
        (0.95, 6, 8, 4, 0.3),
    ],
)
def test_intervals_of_shares_cover_the_truth_where_a_bootstrap_does_not(
    share: float, tasks: int, prompts: int, images: int, alike: float
):
    """300 sets of images each, of prompts that differ in how hard they are."""
    rng = np.random.default_rng(0)
    size = (tasks, prompts)
    hits, narrow = 0, 0
    for trial in range(300):
        odds = (1 - alike) / alike if alike else 0
        chances = rng.beta(share * odds, (1 - share) * odds, size) if alike else np.full(size, share)
        right = (rng.random((*size, images)) < chances[..., None]).astype(float).ravel()
        names = np.repeat(np.arange(tasks * prompts), images)
        scores = observe(right.tolist(), names.tolist(), (names // prompts).tolist(), most=1.0)
        found = share_interval(scores)
        hits += found.low <= share <= found.high
        if trial < 60:
            drawn = bootstrap(scores, resamples=200)
            narrow += not drawn.low <= share <= drawn.high
    assert hits / 300 >= 0.9
    if share == 0.02:
        assert narrow > 20, "so few right images that a bootstrap often draws none"


def test_a_difference_of_shares_is_never_sure_of_nothing():
    none = observe([0.0] * 32, range(32), most=1.0)
    same = difference_interval(none, none)
    assert same.low < same.value == 0 < same.high
    every = observe([1.0] * 32, range(32), most=1.0)
    assert difference_interval(every, none).low == pytest.approx(1 - math.hypot(0.107, 0.107), abs=1e-3)
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    a, b = (observe((hard > level).astype(float).tolist(), range(200), most=1.0) for level in (0.45, 0.5))
    paired, drawn = difference_interval(a, b), paired_bootstrap(a, b)
    assert (paired.low, paired.high) == pytest.approx((drawn.low, drawn.high), abs=0.012)
    order = rng.permutation(200)
    shuffled = observe(b.values[order].tolist(), order.tolist(), most=1.0)
    assert difference_interval(a, shuffled).low == pytest.approx(paired.low)
    with pytest.raises(UserError, match="same prompts"):
        difference_interval(none, observe([1.0], ["x"], most=1.0))
