import torch

from kilopix.diffusion.objective import (
    LogitNormalTime,
    ObjectiveConfig,
    UniformTime,
    draw,
    loss_per_sample,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmented_versions_are_taken_above_tau_with_probability_p():
    config = ObjectiveConfig(time=UniformTime(), augment_above=0.4, augment_probability=0.5)
    decisions = draw(config, 20_000, generator())
    assert not decisions.augmented[decisions.t <= 0.4].any()
    above = decisions.augmented[decisions.t > 0.4].float().mean()
    assert abs(above - 0.5) < 0.02
    assert abs(decisions.augmented.float().mean() - 0.3) < 0.02


def test_captions_are_dropped_with_their_probability():
    decisions = draw(ObjectiveConfig(caption_dropout=0.1), 20_000, generator())
    assert abs(decisions.drop_text.float().mean() - 0.1) < 0.01


def test_short_captions_are_for_plain_and_augmented_samples():
    decisions = draw(ObjectiveConfig(time=UniformTime(), short_captions=0.3), 20_000, generator())
    for version in (decisions.augmented, ~decisions.augmented):
        assert version.sum() > 5_000
        assert abs(decisions.short[version].float().mean() - 0.3) < 0.02
    assert not draw(ObjectiveConfig(), 1000, generator()).short.any()


def test_a_stratified_draw_has_one_time_in_every_stratum():
    t = draw(ObjectiveConfig(time=UniformTime(), stratified=True), 64, generator()).t
    assert sorted((t * 64).floor().int().tolist()) == list(range(64))
    plain = draw(ObjectiveConfig(time=UniformTime(), stratified=False), 64, generator()).t
    assert sorted((plain * 64).floor().int().tolist()) != list(range(64))


def test_logit_normal_times_have_the_mean_and_spread_asked_for():
    config = ObjectiveConfig(time=LogitNormalTime(mean=0.5, std=0.8), stratified=True)
    z = torch.logit(draw(config, 50_000, generator()).t.double())
    assert abs(z.mean() - 0.5) < 0.01
    assert abs(z.std() - 0.8) < 0.01


def test_the_loss_of_a_perfect_network_is_zero_and_of_another_its_error():
    latents, noise = (
        torch.randn(4, 2, 3, 3, generator=generator(1)),
        torch.randn(4, 2, 3, 3, generator=generator(2)),
    )
    t = torch.linspace(0.1, 0.9, 4)
    config = ObjectiveConfig()
    perfect = loss_per_sample(config, lambda x, t: noise - latents, latents, noise, t)
    torch.testing.assert_close(perfect, torch.zeros(4))
    off = torch.tensor([0.0, 1.0, 2.0, 3.0])
    wrong = loss_per_sample(
        config, lambda x, t: noise - latents + off[:, None, None, None], latents, noise, t
    )
    torch.testing.assert_close(wrong, off**2)
