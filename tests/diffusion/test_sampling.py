import torch

from kilopix.diffusion.guidance import ConstantGuidance
from kilopix.diffusion.paths import GammaPath, StraightPath
from kilopix.diffusion.sampling import (
    PRESETS,
    Clamp,
    DynamicThreshold,
    NoThreshold,
    SamplingChanges,
    SamplingConfig,
    denoiser,
    limited,
)


def test_changes_leave_the_rest_of_the_settings():
    config = SamplingConfig(steps=10, guidance=ConstantGuidance(scale=5, stop=0.1))
    assert SamplingChanges().apply(config) == config
    changed = SamplingChanges(steps=3, guidance=1.0, negative_prompt="grey").apply(config)
    assert changed.steps == 3
    assert changed.guidance == ConstantGuidance(scale=1, stop=0.1)
    assert changed.negative_prompt == "grey"
    assert changed.sampler == config.sampler


def test_a_preset_comes_first_and_changes_on_top():
    changed = SamplingChanges(preset="published", steps=20).apply(SamplingConfig(steps=3))
    assert changed == PRESETS["published"].model_copy(update={"steps": 20})
    assert changed.guidance.scale - 1 == 15


def test_thresholds():
    data = torch.linspace(-3, 3, 101).view(1, 1, 101, 1).repeat(2, 2, 1, 1)
    data[1] *= 0.1
    assert torch.equal(limited(data, NoThreshold()), data)
    assert limited(data, Clamp(value=1.2)).abs().max() == torch.tensor(1.2)
    dynamic = limited(data, DynamicThreshold(percentile=0.9))
    assert dynamic[0].abs().max() == 1
    torch.testing.assert_close(dynamic[0, 0, 60, 0], data[0, 0, 60, 0] / 2.7)
    assert torch.equal(dynamic[1], data[1])  # below `least`, nothing changes


def test_a_channel_has_its_own_dynamic_threshold():
    data = torch.ones(1, 2, 4, 4)
    data[0, 0] = 4
    whole = limited(data, DynamicThreshold(percentile=1.0))
    apart = limited(data, DynamicThreshold(percentile=1.0, per_channel=True))
    assert whole[0, :, 0, 0].tolist() == [1, 0.25]
    assert apart[0, :, 0, 0].tolist() == [1, 1]


def test_after_a_threshold_the_noise_is_what_the_data_leave():
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for path, kind in ((GammaPath(), "noise"), (StraightPath(), "velocity")):
        t = torch.tensor(0.6, dtype=torch.float64)
        denoise = denoiser(lambda x, t: 0.3 * x, path, kind, Clamp(value=0.5))
        data, noise = denoise(x, t)
        assert data.abs().max() <= 0.5
        torch.testing.assert_close(path.at(t).mix(data, noise), x)
