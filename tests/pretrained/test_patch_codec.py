import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.types import UserError


def _pictures(count: int, seed: int, side: int = 32) -> torch.Tensor:
    """Smooth colours with finer detail on top, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, side, side)
    for cells, weight in ((4, 1.0), (8, 0.5), (16, 0.25), (side, 0.1)):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        total += weight * interpolate(noise, (side, side), mode="bilinear", align_corners=False)
    return total.mul(0.4).clamp(-1, 1)


@pytest.fixture(scope="module")
def fitting() -> torch.Tensor:
    return _pictures(300, seed=0)


@pytest.fixture(scope="module")
def codec(fitting: torch.Tensor) -> PatchCodec:
    return PatchCodec.fit(fitting, PatchCodecConfig(patch=8, channels=12))


def test_latents_are_white_on_the_fitting_pictures(codec: PatchCodec, fitting: torch.Tensor):
    latents = codec.encode(fitting).mean
    assert latents.shape == (300, 12, 4, 4)
    flat = latents.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(12).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cov(flat, correction=0), torch.eye(12).double(), atol=1e-4, rtol=0)


def test_half_whitened_latents_keep_the_root_of_their_deviations(codec: PatchCodec, fitting: torch.Tensor):
    half = PatchCodec.fit(fitting, PatchCodecConfig(patch=8, channels=12, whitening=0.5))
    deviations = half.encode(fitting).mean.double().transpose(0, 1).flatten(1).std(1, correction=0)
    # The rows of the whitening map have the inverse of the components' deviations as norms.
    components = 1 / codec.analysis.double().norm(dim=1)
    torch.testing.assert_close(
        deviations / deviations[0], (components / components[0]).sqrt(), atol=0, rtol=1e-3
    )
    torch.testing.assert_close(deviations.square().mean(), torch.tensor(1.0).double(), atol=0, rtol=1e-3)
    other = _pictures(20, seed=1)
    assert abs(half.psnr(other) - codec.psnr(other)) < 0.2


def test_kept_components_are_those_of_a_singular_value_decomposition(codec: PatchCodec, fitting):
    patches = fitting.double().unfold(2, 8, 8).unfold(3, 8, 8)
    flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    flat = flat - flat.mean(0)
    _, values, rows = torch.linalg.svd(flat, full_matrices=False)
    expected = rows[:12] / (values[:12, None] / math.sqrt(len(flat)))
    similarity = torch.nn.functional.cosine_similarity(codec.analysis.double(), expected).abs()
    torch.testing.assert_close(similarity, torch.ones(12).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.analysis.double().norm(dim=1), expected.norm(dim=1), atol=0, rtol=1e-4)


def test_psnr_grows_with_channels(fitting: torch.Tensor):
    held_out = _pictures(50, seed=1)
    figures = [
        PatchCodec.fit(fitting, PatchCodecConfig(channels=channels)).psnr(held_out)
        for channels in (3, 12, 48, 96)
    ]
    assert all(b > a + 0.5 for a, b in pairwise(figures)), figures


def test_psnr_by_its_definition(codec: PatchCodec):
    held_out = _pictures(20, seed=1)
    error = (codec.decode(codec.encode(held_out).mean) - held_out).square().mean()
    assert codec.psnr(held_out) == pytest.approx(20 * math.log10(2) - 10 * math.log10(error), abs=1e-3)


def test_full_rank_is_exact(fitting: torch.Tensor):
    codec = PatchCodec.fit(fitting, PatchCodecConfig(patch=4, channels=48))
    held_out = _pictures(20, seed=1)
    torch.testing.assert_close(codec.decode(codec.encode(held_out).mean), held_out, atol=1e-5, rtol=0)


def test_neighbours_help_on_other_pictures(codec: PatchCodec):
    own = torch.zeros_like(codec.synthesis)
    own[:, :, 1, 1] = torch.linalg.pinv(codec.analysis)
    alone = replace(codec, synthesis=own)
    held_out = _pictures(100, seed=1)
    assert codec.psnr(held_out) > alone.psnr(held_out) + 0.2


def test_a_decoded_picture_has_the_latents_it_came_from(codec: PatchCodec):
    latents = 0.1 * torch.randn(4, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    decoded = codec.decode(latents)
    assert decoded.abs().max() < 1, "clamping would lose what is tested"
    torch.testing.assert_close(codec.encode(decoded).mean, latents, atol=1e-5, rtol=0)


def test_decoded_pictures_are_clamped(codec: PatchCodec):
    decoded = codec.decode(100 * torch.ones(1, 12, 2, 3))
    assert decoded.shape == (1, 3, 16, 24)
    assert decoded.min() == -1
    assert decoded.max() == 1


def test_fitting_twice_gives_the_same_codec_with_positive_peaks(codec: PatchCodec, fitting: torch.Tensor):
    again = PatchCodec.fit(fitting.clone(), codec.config)
    assert again.fingerprint == codec.fingerprint
    peaks = codec.analysis.gather(1, codec.analysis.abs().argmax(1, keepdim=True))
    assert (peaks > 0).all()
    other = PatchCodec.fit(_pictures(300, seed=2), codec.config)
    assert other.fingerprint != codec.fingerprint


def test_saved_and_loaded_is_bit_identical(codec: PatchCodec, tmp_path: Path):
    codec.save(tmp_path / "codec.safetensors")
    codec.save(tmp_path / "again.safetensors")
    loaded = PatchCodec.load(tmp_path / "codec.safetensors")
    assert loaded.config == codec.config
    for name in ("mean", "analysis", "synthesis"):
        assert torch.equal(getattr(loaded, name), getattr(codec, name))
    assert loaded.fingerprint == codec.fingerprint
    first, second = (tmp_path / name for name in ("codec.safetensors", "again.safetensors"))
    assert first.read_bytes() == second.read_bytes()


def test_wrong_files_are_named(tmp_path: Path, codec: PatchCodec):
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        PatchCodec.load(tmp_path / "none.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("not weights, but a text that is long enough", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.safetensors: is not a patch codec"):
        PatchCodec.load(text)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(UserError, match=r"other\.safetensors: is not a patch codec"):
        PatchCodec.load(other)
    save_file({"mean": torch.zeros(2)}, other, metadata={"kilopix.patch_codec": '{"patch": 0}'})
    with pytest.raises(UserError, match=r"other\.safetensors: is not a patch codec"):
        PatchCodec.load(other)
    header = {"kilopix.patch_codec": codec.config.model_dump_json()}
    save_file({"mean": codec.mean}, other, metadata=header)
    with pytest.raises(UserError, match=r"other\.safetensors: the codec's analysis is missing"):
        PatchCodec.load(other)
    save_file(
        {"mean": codec.mean[:-1], "analysis": codec.analysis, "synthesis": codec.synthesis},
        other,
        metadata=header,
    )
    with pytest.raises(UserError, match=r"other\.safetensors: mean has the shape \(191,\), not \(192,\)"):
        PatchCodec.load(other)


def test_pictures_that_cannot_be_fitted():
    grey = _pictures(100, seed=0)[:, :1].expand(-1, 3, -1, -1)
    with pytest.raises(UserError, match="only 16 independent components"):
        PatchCodec.fit(grey, PatchCodecConfig(patch=4, channels=20))
    assert PatchCodec.fit(grey, PatchCodecConfig(patch=4, channels=16)).psnr(grey) > 80
    with pytest.raises(UserError, match="only 0 independent"):
        PatchCodec.fit(torch.full((10, 3, 8, 8), 0.3), PatchCodecConfig(channels=1))
    with pytest.raises(UserError, match="do not divide into patches of 8 x 8"):
        PatchCodec.fit(torch.zeros(2, 3, 20, 16), PatchCodecConfig())


def test_a_picture_of_another_size_is_refused(codec: PatchCodec):
    with pytest.raises(UserError, match="20 x 16 pixels"):
        codec.encode(torch.zeros(1, 3, 20, 16))
