import pytest
import torch

from kilopix.diffusion.paths import StraightPath, expand, shift_time


def batch():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(5, 2, 3, 3, generator=generator)
    noise = torch.randn(5, 2, 3, 3, generator=generator)
    t = torch.linspace(0.05, 0.95, 5)
    return data, noise, t


def test_ends_of_the_straight_path_are_data_and_noise():
    data, noise, _ = batch()
    path = StraightPath()
    assert torch.equal(path.at(torch.tensor(0.0)).mix(data, noise), data)
    assert torch.equal(path.at(torch.tensor(1.0)).mix(data, noise), noise)


@pytest.mark.parametrize("kind", ["noise", "data", "velocity"])
def test_every_prediction_converts_back_to_data_and_noise(kind):
    data, noise, t = batch()
    point = StraightPath().at(expand(t))
    x = point.mix(data, noise)
    found_data, found_noise = point.data_and_noise(kind, point.target(kind, data, noise), x)
    torch.testing.assert_close(found_data, data, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found_noise, noise, atol=1e-4, rtol=1e-4)


def test_velocity_is_the_derivative_along_the_path():
    data, noise, t = (x.double() for x in batch())
    path, step = StraightPath(), 1e-6
    before, after = path.at(expand(t - step)).mix(data, noise), path.at(expand(t + step)).mix(data, noise)
    torch.testing.assert_close((after - before) / (2 * step), path.at(expand(t)).velocity(data, noise))


def test_shift_keeps_the_ends_and_moves_towards_noise():
    t = torch.linspace(0, 1, 11)
    shifted = shift_time(t, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] > t[1:-1]).all()
    assert torch.equal(shift_time(t, 1.0), t)
