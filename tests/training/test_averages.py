import math

import pytest
import torch
from torch import nn

from kilopix.config import parse
from kilopix.errors import UserError
from kilopix.recipe import Recipe
from kilopix.training.averages import (
    ExponentialAverage,
    ExponentialConfig,
    PowerAverages,
    PowerConfig,
    build_average,
)
from kilopix.training.posthoc import exponent_of


def test_the_average_follows_its_formula():
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    average = ExponentialAverage(network, ExponentialConfig(half_life_images=100, ramp=1.0))
    expected, seen, batch = 1.0, 1000, 50
    for value in (3.0, -2.0, 5.0):
        with torch.no_grad():
            network.weight.fill_(value)
        seen += batch
        average.update(network, seen, batch)
        beta = 0.5 ** (batch / 100)
        expected = beta * expected + (1 - beta) * value
    assert math.isclose(average.network.weight[0, 0].item(), expected, rel_tol=1e-6)


def test_after_one_half_life_half_of_the_old_weights_is_left():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = ExponentialAverage(network, ExponentialConfig(half_life_images=1000, ramp=1.0))
    nn.init.ones_(network.weight)
    for step in range(100):
        average.update(network, 10**6 + 10 * step, 10)
    assert math.isclose(average.network.weight.item(), 0.5, rel_tol=1e-4)


@pytest.mark.parametrize("config", [ExponentialConfig(half_life_images=100), PowerConfig()])
def test_a_step_that_was_left_out_leaves_the_averages_alone(config):
    network = nn.Linear(3, 2)
    average = build_average(network, config)
    nn.init.constant_(network.weight, 5.0)
    before = [p.clone() for one in average.networks for p in one.parameters()]
    average.update(network, 1000, 50, torch.zeros(()))
    assert all(map(torch.equal, before, (p for one in average.networks for p in one.parameters())))
    average.update(network, 1000, 50, torch.ones(()))
    after = [p.clone() for one in average.networks for p in one.parameters()]
    assert not torch.equal(before[0], after[0])
    again = build_average(nn.Linear(3, 2), config)
    for one in again.networks:
        for parameter, value in zip(one.parameters(), before, strict=False):
            parameter.data.copy_(value)
    again.update(network, 1000, 50)
    torch.testing.assert_close(next(iter(again.network.parameters())), after[0])


def test_early_in_training_the_average_is_short():
    average = ExponentialAverage(nn.Linear(1, 1), ExponentialConfig(half_life_images=1e6, ramp=0.05))
    assert average.beta(images_seen=1000, batch=50) == 0.5
    assert average.beta(images_seen=10**9, batch=50) == 0.5 ** (50 / 1e6)


def test_the_average_is_a_copy_that_never_learns():
    network = nn.Linear(2, 2)
    average = ExponentialAverage(network, ExponentialConfig())
    assert not any(p.requires_grad for p in average.network.parameters())
    assert average.network.weight.data_ptr() != network.weight.data_ptr()


def test_older_recipes_that_name_no_kind_are_exponential():
    recipe = Recipe.model_validate({"training": {"average": {"half_life_images": 7}}})
    assert recipe.training.average == ExponentialConfig(half_life_images=7)
    with pytest.raises(UserError, match=r"training\.average\.sigma_rell"):
        parse(Recipe, {"training": {"average": {"kind": "power", "sigma_rell": 1}}}, "here")


@pytest.mark.parametrize("widths", [(0.3,), (0.0,), (0.1, 0.1), ()])
def test_impossible_widths_are_refused(widths: tuple[float, ...]):
    with pytest.raises(ValueError):
        PowerConfig(sigma_rel=widths)


def test_a_power_average_weights_the_past_by_a_power_of_time():
    """After N steps of one image the weight of step i is (i/N)^(g+1) - ((i-1)/N)^(g+1), by telescoping."""
    network = nn.Linear(1, 1, bias=False)
    average = PowerAverages(network, PowerConfig(sigma_rel=(0.2, 0.1)))
    steps, values = 60, torch.randn(60, generator=torch.Generator().manual_seed(0)).tolist()
    for i, value in enumerate(values, start=1):
        nn.init.constant_(network.weight, value)
        average.update(network, i, 1)
    for width, averaged in zip((0.2, 0.1), average.networks, strict=True):
        power = exponent_of(width) + 1
        weights = [(i / steps) ** power - ((i - 1) / steps) ** power for i in range(1, steps + 1)]
        expected = sum(w * v for w, v in zip(weights, values, strict=True))
        assert math.isclose(sum(weights), 1, rel_tol=1e-12)
        assert math.isclose(averaged.weight.item(), expected, rel_tol=1e-5, abs_tol=1e-6)
    assert average.network is average.networks[0]


def test_the_batch_size_does_not_change_a_power_average():
    ends = []
    for batch in (1, 5):
        network = nn.Linear(1, 1, bias=False)
        average = PowerAverages(network, PowerConfig(sigma_rel=(0.1,)))
        for seen in range(batch, 1001, batch):
            nn.init.constant_(network.weight, (seen - batch) // 5)  # the same for both between fives
            average.update(network, seen, batch)
        ends.append(average.network.get_parameter("weight").item())
    assert math.isclose(ends[0], ends[1], rel_tol=1e-5)


def test_buffers_are_those_of_the_network():
    network = nn.BatchNorm1d(2)
    average = build_average(network, PowerConfig())
    network.running_mean = torch.tensor([1.0, 2.0])
    average.update(network, 10, 10)
    assert all(torch.equal(n.get_buffer("running_mean"), network.running_mean) for n in average.networks)
