from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kilopix.evaluation.geneval import COLORS
from kilopix.pretrained.clip import (
    TEMPLATES,
    ColorClassifier,
    ColorConfig,
    cut_out,
    load_color_classifier,
)
from kilopix.types import UserError
from tiny_models import save_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def classifier(folder: Path) -> ColorClassifier:
    return load_color_classifier(ColorConfig(name=str(folder)), COLORS)


def cutouts(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(9, 90, (count, 2))]
    return [Image.new("RGB", size, tuple(map(int, rng.integers(0, 256, 3)))) for size in sizes]


def test_colors_agree_with_transformers_own_way(folder: Path, classifier: ColorClassifier):
    """Its processor, its feature functions; the three templates of a colour averaged, each of length 1."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    images = cutouts(40)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.inference_mode():
        weights = []
        for color in COLORS:
            texts = [
                f"a photo of a {color} car",
                f"a photo of a {color}-colored car",
                f"a photo of a {color} object",
            ]
            tokens = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
            features = model.get_text_features(**tokens).pooler_output
            mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
            weights.append(mean / mean.norm())
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        seen = model.get_image_features(pixel_values=pixels).pooler_output
        want = (seen @ torch.stack(weights).T).argmax(1)
    assert classifier.colors(images, "car") == [COLORS[i] for i in want]
    assert len(set(want.tolist())) > 1


def test_the_noun_matters_and_batches_do_not(classifier: ColorClassifier):
    images = cutouts(20)
    assert classifier.colors([], "car") == []
    assert classifier.colors(images, "dog") == [classifier.colors([one], "dog")[0] for one in images]
    texts = [classifier._of(noun) for noun in ("car", "dog")]  # pyright: ignore
    assert not torch.allclose(texts[0], texts[1], atol=1e-4)
    assert len(TEMPLATES) == 3


def test_cutting_out():
    image = Image.new("RGB", (6, 4), (200, 10, 20))
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1:3, 2] = True
    cut = np.asarray(cut_out(image, mask, (2.0, 1.0, 4.0, 3.0)))
    assert cut.shape == (2, 2, 3)
    assert (cut[:, 0] == (200, 10, 20)).all()
    assert (cut[:, 1] == 0x99).all()
    assert np.asarray(cut_out(image, mask, (2.0, 1.0, 4.0, 3.0), crop=False)).shape == (4, 6, 3)
    whole = np.asarray(cut_out(image, mask, (2.0, 1.0, 4.0, 3.0), "original"))
    assert (whole == (200, 10, 20)).all()


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.json"):
        load_color_classifier(ColorConfig(name=str(tmp_path)), COLORS)
