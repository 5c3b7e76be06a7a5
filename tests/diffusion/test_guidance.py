import pytest
import torch

from kilopix.config import parse
from kilopix.diffusion.guidance import (
    ConstantGuidance,
    LinearGuidance,
    ProjectedGuidance,
    ZeroStarGuidance,
    guided,
)
from kilopix.diffusion.paths import GammaPath, StraightPath
from kilopix.errors import UserError

PATH = StraightPath()


def pair(with_text, without, calls=None):
    """Two fixed predictors, in the form that `guided` takes."""

    def alone(x, t):
        calls is None or calls.append("alone")
        return with_text

    def both(x, t):
        calls is None or calls.append("both")
        return with_text, without

    return alone, both


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_guidance_is_off_at_scale_1_and_outside_its_interval():
    calls = []
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)

    def at(config, t):
        return float(guided(*pair(one, zero, calls), config, PATH, "velocity")(zero, torch.tensor(t)))

    assert at(ConstantGuidance(scale=1), 0.5) == 1
    assert at(ConstantGuidance(scale=3, start=0.8, stop=0.2), 0.9) == 1
    assert calls == ["alone", "alone"]
    assert at(ConstantGuidance(scale=3, start=0.8, stop=0.2), 0.5) == 3
    assert at(ConstantGuidance(scale=0), 0.5) == 0


def test_linear_guidance_grows_from_nothing_to_twice_its_weight():
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    predict = guided(*pair(one, zero), LinearGuidance(scale=6), PATH, "velocity")
    assert [float(predict(zero, torch.tensor(t))) for t in (1.0, 0.5, 0.0)] == pytest.approx([1, 6, 11])


@pytest.mark.parametrize("path", [PATH, GammaPath(schedule="cosine")])
@pytest.mark.parametrize("kind", ["velocity", "data"])
def test_all_kinds_agree_with_constant_guidance_where_they_should(path, kind):
    """APG that keeps all of the difference, and CFG-Zero* on predictions that need no scaling."""
    x, t = random(2, 3, 4, 4, seed=0), torch.tensor(0.4, dtype=torch.float64)
    first, second = random(2, 3, 4, 4, seed=1), random(2, 3, 4, 4, seed=2)
    constant = guided(*pair(first, second), ConstantGuidance(scale=4), path, kind)(x, t)
    projected = ProjectedGuidance(scale=4, parallel=1.0, momentum=0.0)
    torch.testing.assert_close(guided(*pair(first, second), projected, path, kind)(x, t), constant)
    same = guided(*pair(first, first), ZeroStarGuidance(scale=4), path, kind)(x, t)
    torch.testing.assert_close(same, first)


def test_cfg_zero_star_scales_the_unconditional_velocity_and_begins_at_rest():
    first, second = random(1, 1, 2, 2, seed=1), random(1, 1, 2, 2, seed=2)
    predict = guided(*pair(first, second), ZeroStarGuidance(scale=3, zero_above=0.9), PATH, "velocity")
    x = random(1, 1, 2, 2, seed=0)
    fitted = (first * second).sum() / second.square().sum() * second
    torch.testing.assert_close(predict(x, torch.tensor(0.5).double()), fitted + 3 * (first - fitted))
    assert predict(x, torch.tensor(0.95).double()).abs().max() < 1e-12


def test_apg_takes_away_what_lies_along_the_prediction_and_limits_the_rest():
    data, other = random(1, 1, 3, 3, seed=1), random(1, 1, 3, 3, seed=2)
    x, t = random(1, 1, 3, 3, seed=0), torch.tensor(0.5).double()
    change = lambda **options: (  # noqa: E731
        guided(*pair(data, other), ProjectedGuidance(scale=3, momentum=0.0, **options), PATH, "data")(x, t)
        - data
    )
    assert abs((change() * data).sum()) < 1e-9
    assert change().norm() > 0.1
    torch.testing.assert_close(change(parallel=1.0, norm=0.25).norm(), torch.tensor(0.5).double())


def test_apg_remembers_the_last_difference():
    data, other = random(1, 1, 3, 3, seed=1), random(1, 1, 3, 3, seed=2)
    predict = guided(
        *pair(data, other), ProjectedGuidance(scale=2, parallel=1.0, momentum=-0.5), PATH, "data"
    )
    x, t = random(1, 1, 3, 3, seed=0), torch.tensor(0.5).double()
    torch.testing.assert_close(predict(x, t) - data, data - other)
    torch.testing.assert_close(predict(x, t) - data, 0.5 * (data - other))


def test_an_interval_in_the_wrong_order_is_an_error():
    with pytest.raises(UserError, match="below stop"):
        parse(ConstantGuidance, {"start": 0.2, "stop": 0.8}, "recipe")
