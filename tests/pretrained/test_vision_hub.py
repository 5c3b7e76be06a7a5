"""DINOv2 and CLIP as folders of the hub's form, against transformers' own processors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kilopix.pretrained.aesthetic import load_aesthetic
from kilopix.pretrained.vision import FeatureExtractor
from kilopix.pretrained.vision_hub import (
    CLIP,
    cosines,
    load_clip,
    load_dinov2,
    resize_and_cut,
    resize_whole,
)
from kilopix.types import UserError
from tiny_networks import save_clip, save_dinov2, save_linear_aesthetic


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> CLIP:
    return load_clip(str(clip_folder))


def images(height: int, width: int, count: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(0)
    soft = rng.integers(0, 256, (count, 9, 9, 3), np.uint8)
    pictures = [Image.fromarray(a).resize((width, height), Image.Resampling.BICUBIC) for a in soft]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()


def as_pil(batch: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(a) for a in batch.permute(0, 2, 3, 1).numpy()]


def test_dinov2_is_the_class_token_of_the_whole_picture(dinov2_folder: Path):
    from transformers import Dinov2Model

    extractor = load_dinov2(str(dinov2_folder))
    assert isinstance(extractor, FeatureExtractor)
    batch = images(60, 90)
    found = extractor.features(batch)
    assert found.shape == (3, extractor.width) == (3, 16)
    resized = [np.asarray(p.resize((224, 224), Image.Resampling.BICUBIC)) for p in as_pil(batch)]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(dinov2_folder).eval()(pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.std(0).max() > 1e-3
    assert extractor.features(batch[:0]).shape == (0, 16)


@pytest.mark.parametrize("size", [(60, 90), (90, 61), (32, 32), (20, 31)])
def test_clip_preprocesses_as_its_processor(size):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    batch = images(*size)
    expected = processor(
        images=as_pil(batch), do_normalize=False, do_rescale=False, return_tensors="pt"
    ).pixel_values
    assert torch.equal(resize_and_cut(batch, 32).float(), expected.float())


def test_clip_embeddings_are_the_models_own(clip: CLIP, clip_folder: Path):
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    assert isinstance(clip, FeatureExtractor)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    batch, prompts = images(50, 40), ["a red fox", "a photo of a blue car on snow", ""]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(images=as_pil(batch), return_tensors="pt").pixel_values
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=8, return_tensors="pt")
    with torch.inference_mode():
        out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    mine = clip.features(batch), clip.text_features(prompts)
    for found, expected in zip(mine, (out.image_embeds, out.text_embeds), strict=True):
        normalised = torch.nn.functional.normalize(found, dim=1)
        torch.testing.assert_close(normalised, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        cosines(*mine) * clip.scale, out.logits_per_image.diagonal(), atol=1e-4, rtol=1e-4
    )
    assert clip.too_long(prompts) == 1  # eight tokens are start, six words and end
    assert clip.text_features([]).shape == (0, 24)


def test_whole_pictures_keep_nothing_back():
    batch = images(40, 80)
    assert resize_whole(batch, 16).shape == (3, 3, 16, 16)
    assert torch.equal(resize_whole(batch[..., :40], 40), batch[..., :40])


def test_damaged_or_foreign_weights_are_refused(clip_folder: Path, dinov2_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no folder here"):
        load_dinov2(str(tmp_path / "none"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    tensors = load_file(clip_folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"visual_projection\.weight is missing"):
        load_clip(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "model.safetensors").write_bytes((clip_folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_clip(str(tmp_path))


def test_the_linear_aesthetic_head(tmp_path: Path):
    head = load_aesthetic(save_linear_aesthetic(tmp_path / "linear.safetensors"))
    tensors = load_file(tmp_path / "linear.safetensors")
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)) * 7
    expected = (x / x.norm(dim=1, keepdim=True)) @ tensors["weight"][0] + 5
    torch.testing.assert_close(head.score(x), expected)
    assert head.width == 24


def test_the_deeper_aesthetic_head(tmp_path: Path):
    """Without activations between them, the layers are one matrix."""
    layers = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    product, shift = torch.eye(768, dtype=torch.float64), torch.zeros(768, dtype=torch.float64)
    for i, (inputs, outputs) in layers.items():
        weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        bias = torch.randn(outputs, generator=generator)
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
        product, shift = weight.double() @ product, weight.double() @ shift + bias.double()
    save_file(tensors, tmp_path / "deep.safetensors")
    x = torch.randn(4, 768, generator=generator)
    expected = (x / x.norm(dim=1, keepdim=True)).double() @ product[0] + shift[0]
    found = load_aesthetic(tmp_path / "deep.safetensors").score(x)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    tensors["layers.9.weight"] = tensors.pop("layers.7.weight")
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not the weights of an aesthetic predictor"):
        load_aesthetic(tmp_path / "other.safetensors")
