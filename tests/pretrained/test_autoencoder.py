from pathlib import Path
from typing import Any

import pytest
import torch

from kilopix.config import Config, parse
from kilopix.pretrained.autoencoder import (
    CODEC_FILE,
    AutoencoderConfig,
    SDAutoencoderConfig,
    load_autoencoder,
)
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.types import UserError


def _kl_class() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL


def _write_kl(folder: Path, seed: int, latent_channels: int = 4) -> Path:
    """A tiny random AutoencoderKL of downsampling 4."""
    torch.manual_seed(seed)
    _kl_class()(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
    ).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_kl(tmp_path_factory.mktemp("kl"), seed=0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _plain(folder: Path) -> Any:
    return _kl_class().from_pretrained(str(folder), low_cpu_mem_usage=False).eval()


def test_sd_moments_are_those_of_diffusers_times_scale(kl_folder: Path, images: torch.Tensor):
    autoencoder = load_autoencoder(SDAutoencoderConfig(name=str(kl_folder), scale=0.5), None)
    assert (autoencoder.channels, autoencoder.downsampling) == (4, 4)
    moments = autoencoder.encode(images)
    with torch.no_grad():
        expected = _plain(kl_folder).encode(images).latent_dist
    assert moments.mean.shape == (2, 4, 8, 6)
    torch.testing.assert_close(moments.mean, expected.mean * 0.5)
    torch.testing.assert_close(moments.std, expected.std * 0.5)
    assert (moments.std > 0).all()


def test_sd_encoder_runs_once(kl_folder: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    from diffusers.models.autoencoders.vae import Encoder

    calls = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    load_autoencoder(SDAutoencoderConfig(name=str(kl_folder)), None).encode(images)
    assert calls == [2]


def test_sd_decodes_scaled_latents_and_clamps(kl_folder: Path):
    autoencoder = load_autoencoder(SDAutoencoderConfig(name=str(kl_folder), scale=0.25), None)
    latents = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = _plain(kl_folder).decode(latents / 0.25).sample
    torch.testing.assert_close(autoencoder.decode(latents), expected.clamp(-1, 1))
    model = autoencoder._model  # pyright: ignore
    model.decoder.conv_out.bias.data += 5
    assert (autoencoder.decode(latents) == 1).all()


def test_sd_with_another_decoder(kl_folder: Path, tmp_path: Path, images: torch.Tensor):
    other = _write_kl(tmp_path / "whole" / "vae", seed=3)
    config = SDAutoencoderConfig(
        name=str(kl_folder), decoder_name=str(tmp_path / "whole"), decoder_subfolder="vae"
    )
    mixed = load_autoencoder(config, None)
    alone = load_autoencoder(SDAutoencoderConfig(name=str(kl_folder)), None)
    latents = alone.encode(images).mean
    torch.testing.assert_close(mixed.encode(images).mean, latents)
    with torch.no_grad():
        expected = _plain(other).decode(latents / config.scale).sample.clamp(-1, 1)
    torch.testing.assert_close(mixed.decode(latents), expected)
    assert (mixed.decode(latents) - alone.decode(latents)).abs().max() > 1e-3
    assert mixed.fingerprint == alone.fingerprint, "the latents are the same"
    assert mixed.name != alone.name


def test_sd_refuses_a_decoder_of_other_latents(kl_folder: Path, tmp_path: Path):
    other = _write_kl(tmp_path / "other", seed=3, latent_channels=3)
    with pytest.raises(UserError, match="3 channels"):
        load_autoencoder(SDAutoencoderConfig(name=str(kl_folder), decoder_name=str(other)), None)


def test_sd_reads_a_subfolder_and_tells_weights_apart(kl_folder: Path, tmp_path: Path):
    _write_kl(tmp_path / "vae", seed=0)
    one = load_autoencoder(SDAutoencoderConfig(name=str(kl_folder)), None)
    same = load_autoencoder(SDAutoencoderConfig(name=str(tmp_path), subfolder="vae"), None)
    scaled = load_autoencoder(SDAutoencoderConfig(name=str(kl_folder), scale=0.2), None)
    _write_kl(tmp_path / "b", seed=1)
    other = load_autoencoder(SDAutoencoderConfig(name=str(tmp_path / "b")), None)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, scaled.fingerprint, other.fingerprint}) == 3


def test_sd_refuses_sides_that_do_not_divide(kl_folder: Path):
    autoencoder = load_autoencoder(SDAutoencoderConfig(name=str(kl_folder)), None)
    with pytest.raises(UserError, match="multiples of 4"):
        autoencoder.encode(torch.zeros(1, 3, 30, 32))


def test_sd_latents_can_enter_autograd(kl_folder: Path, images: torch.Tensor):
    weight = torch.ones(1, requires_grad=True)
    moments = load_autoencoder(SDAutoencoderConfig(name=str(kl_folder)), None).encode(images)
    ((moments.mean + moments.std) * weight).sum().backward()
    assert weight.grad is not None


def test_sd_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"sd-vae-ft-ema.*hf download"):
        load_autoencoder(SDAutoencoderConfig(), None)


def test_patch_codec_is_read_from_the_shards(tmp_path: Path, images: torch.Tensor):
    config = PatchCodecConfig(patch=4, channels=5)
    codec = PatchCodec.fit(images, config)
    codec.save(tmp_path / CODEC_FILE)
    autoencoder = load_autoencoder(config, tmp_path)
    assert (autoencoder.channels, autoencoder.downsampling) == (5, 4)
    assert autoencoder.fingerprint == codec.fingerprint
    moments = autoencoder.encode(images)
    assert moments.mean.shape == (2, 5, 8, 6)
    assert (moments.std == 0).all()
    with pytest.raises(UserError, match=r"channels=5.*channels=6"):
        load_autoencoder(PatchCodecConfig(patch=4, channels=6), tmp_path)
    with pytest.raises(UserError, match="folder of the shards"):
        load_autoencoder(config, None)


def test_config_is_chosen_by_kind():
    class Owner(Config):
        autoencoder: AutoencoderConfig = PatchCodecConfig()

    assert parse(Owner, {"autoencoder": {"kind": "sd"}}, "r.toml").autoencoder == SDAutoencoderConfig()
    with pytest.raises(UserError, match="channels=193 is too many"):
        parse(Owner, {"autoencoder": {"kind": "patch", "channels": 193}}, "r.toml")
