"""Any text encoder of transformers and any autoencoder of diffusers, by the name of its folder."""

from pathlib import Path

import pytest
import torch

from hub_models import write_bert, write_clip, write_dc, write_kl, write_t5
from kilopix.pretrained.autoencoder import DiffusersAutoencoderConfig, encode_images, load_autoencoder
from kilopix.pretrained.memory import BatchSize, in_batches
from kilopix.pretrained.text_encoder import HubTextConfig, encode_in_batches, load_text_encoder
from kilopix.types import UserError

TEXTS = ["an image of a fox", "owl", ""]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("write", [write_t5, write_clip, write_bert])
def test_any_text_encoder_is_read(tmp_path: Path, write):
    encoder = load_text_encoder(HubTextConfig(name=str(write(tmp_path)), max_tokens=6))
    assert encoder.width == 16
    out = encoder.encode(TEXTS)
    assert out.mask.sum(1).tolist() == [6, 2, 1]
    assert (out.states[~out.mask] == 0).all()
    for text, states in zip(TEXTS, encode_in_batches(encoder, TEXTS), strict=True):
        torch.testing.assert_close(states, encoder.encode([text]).states[0], atol=1e-5, rtol=0)
    assert not any("vision" in name for name, _ in encoder._model.named_parameters())  # pyright: ignore


def test_a_limit_above_the_models_positions_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no more than 12 positions"):
        load_text_encoder(HubTextConfig(name=str(write_clip(tmp_path)), max_tokens=77))


def test_a_shifted_autoencoder(tmp_path: Path, images: torch.Tensor):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = str(write_kl(tmp_path, shift=0.25))
    ours = load_autoencoder(DiffusersAutoencoderConfig(name=folder, downsampling=4), None)
    moments = ours.encode(images)
    model = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        theirs = model.encode(images).latent_dist
        decoded = model.decode(theirs.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(moments.mean, (theirs.mean - 0.25) * 0.36)
    torch.testing.assert_close(moments.std, theirs.std * 0.36)
    torch.testing.assert_close(ours.decode(moments.mean), decoded, atol=1e-4, rtol=0)
    other = load_autoencoder(
        DiffusersAutoencoderConfig(name=folder, downsampling=4, shift=0.0, scale=1.0), None
    )
    assert other.fingerprint != ours.fingerprint
    torch.testing.assert_close(other.encode(images).mean, theirs.mean)


def test_a_deterministic_autoencoder(tmp_path: Path, images: torch.Tensor):
    ours = load_autoencoder(DiffusersAutoencoderConfig(name=str(write_dc(tmp_path)), downsampling=4), None)
    assert (ours.channels, ours.downsampling) == (8, 4)
    moments = ours.encode(images)
    assert moments.mean.shape == (3, 8, 8, 8)
    assert (moments.std == 0).all()
    assert ours.decode(moments.mean).shape == images.shape


def test_another_downsampling_than_the_models_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"set autoencoder\.downsampling=4"):
        load_autoencoder(DiffusersAutoencoderConfig(name=str(write_kl(tmp_path))), None)


def test_other_classes_are_refused(tmp_path: Path):
    write_kl(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"AutoencoderKL"', '"UNet2DModel"'), encoding="utf-8"
    )
    with pytest.raises(UserError, match="UNet2DModel is no image autoencoder"):
        load_autoencoder(DiffusersAutoencoderConfig(name=str(tmp_path), downsampling=4), None)


def test_batches_that_do_not_fit_are_halved(tmp_path: Path, images: torch.Tensor, monkeypatch):
    ours = load_autoencoder(DiffusersAutoencoderConfig(name=str(write_kl(tmp_path)), downsampling=4), None)
    whole = ours.encode(images)
    encode, sizes = ours.encode, []

    def small_memory(some: torch.Tensor):
        sizes.append(len(some))
        if len(some) > 1:
            raise torch.OutOfMemoryError("too large")
        return encode(some)

    monkeypatch.setattr(ours, "encode", small_memory)
    moments = encode_images(ours, images)
    assert sizes == [3, 1, 1, 1]
    torch.testing.assert_close(moments.mean, whole.mean, atol=1e-5, rtol=0)
    assert in_batches(len, [1, 2], BatchSize(2)) == [2]

    def never(_) -> None:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(UserError, match="does not hold a single item"):
        in_batches(never, [1, 2], BatchSize(2))
