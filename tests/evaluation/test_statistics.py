import math

import numpy as np
import pytest

from kilopix.evaluation import statistics
from kilopix.evaluation.statistics import (
    bootstrap,
    observe,
    paired_bootstrap,
    percentile_interval,
    wilson_interval,
)
from kilopix.types import UserError


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = bootstrap(observe(values.tolist(), range(400)))
    error = values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


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
    interval = bootstrap(observe(values, range(100), tasks))
    assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)
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
        interval = bootstrap(scores, resamples=500, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
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
    interval = paired_bootstrap(a, b)
    assert interval.value == pytest.approx(a.values.mean() - b.values.mean())
    assert 0.05 < interval.low < interval.high < 0.06
    alone = bootstrap(a)
    assert (alone.high - alone.low) > 10 * (interval.high - interval.low)
    assert paired_bootstrap(a, a).low == paired_bootstrap(a, a).high == 0


def test_a_paired_difference_takes_other_numbers_of_pictures():
    a = observe([1.0, 0.0, 1.0, 1.0], ["x", "x", "y", "y"])
    b = observe([0.0, 1.0], ["y", "x"])
    assert paired_bootstrap(a, b).value == 0.25


def test_the_level_sets_what_is_left_out():
    draws = np.arange(101, dtype=np.float64)
    interval = percentile_interval(50.0, draws, 0.9)
    assert (interval.value, interval.low, interval.high) == pytest.approx((50, 5, 95))


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
    interval = bootstrap(observe([1.0, 0.0], ["a", "a"]))
    assert interval.low == interval.high == interval.value == 0.5
    assert math.isfinite(interval.low)


def test_wilsons_interval():
    found = wilson_interval(0.5, 100)
    assert (found.low, found.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(1.0, 20).high == pytest.approx(1)
