import math

import torch
from torch import nn

from kilopix.training.averages import AverageConfig, ExponentialAverage


def test_the_average_follows_its_formula():
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    average = ExponentialAverage(network, AverageConfig(half_life_images=100, ramp=1.0))
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
    average = ExponentialAverage(network, AverageConfig(half_life_images=1000, ramp=1.0))
    nn.init.ones_(network.weight)
    for step in range(100):
        average.update(network, 10**6 + 10 * step, 10)
    assert math.isclose(average.network.weight.item(), 0.5, rel_tol=1e-4)


def test_early_in_training_the_average_is_short():
    average = ExponentialAverage(nn.Linear(1, 1), AverageConfig(half_life_images=1e6, ramp=0.05))
    assert average.beta(images_seen=1000, batch=50) == 0.5
    assert average.beta(images_seen=10**9, batch=50) == 0.5 ** (50 / 1e6)


def test_the_average_is_a_copy_that_never_learns():
    network = nn.Linear(2, 2)
    average = ExponentialAverage(network, AverageConfig())
    assert not any(p.requires_grad for p in average.network.parameters())
    assert average.network.weight.data_ptr() != network.weight.data_ptr()
