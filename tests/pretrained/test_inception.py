"""FID's Inception-v3: the published names, graph and resizing.

The golden features were recorded from torch-fidelity 0.4.0 (float32, CPU) with the weights of
`inception_tensors` and the pictures of `picture`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kilopix.pretrained.inception import FIDInception, load_inception, tensorflow_bilinear
from kilopix.pretrained.vision import FeatureExtractor
from kilopix.types import UserError
from tiny_networks import inception_tensors, save_inception

# Of a picture of this size every 128th feature, in 1e-6, and the norm of all.
GOLDEN = {
    (40, 56): (
        "262 3754 0 1395 1081192 0 0 0 0 30149 74807 21919 167486 663533 3419 388191",
        57.61521061876427,
    ),
    (320, 310): (
        "135 4545 0 5146 1109416 0 0 0 0 53454 97986 34376 185734 874987 1776 655480",
        72.82670278269302,
    ),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inception(tmp_path_factory.mktemp("inception") / "inception.safetensors")


@pytest.fixture(scope="module")
def inception(weights: Path) -> FeatureExtractor:
    return load_inception(weights)


def picture(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    channels = [(3 * x + 5 * y) % 256, (x * y) % 256, (7 * x + y * y) % 256]
    return torch.stack(channels).to(torch.uint8)[None]


@pytest.mark.parametrize("size", list(GOLDEN))
def test_features_agree_with_torch_fidelity(inception: FeatureExtractor, size):
    some, norm = GOLDEN[size]
    found = inception.features(picture(*size))
    assert found.shape == (1, inception.width) == (1, 2048)
    expected = torch.tensor([float(value) * 1e-6 for value in some.split()])
    torch.testing.assert_close(found[0, ::128], expected, atol=1e-5, rtol=1e-4)
    assert float(found.double().norm()) == pytest.approx(norm, rel=1e-5)


def test_features_do_not_depend_on_the_batch(inception: FeatureExtractor):
    images = torch.cat([picture(30, 30).roll(i, 2) for i in range(2)])
    together = inception.features(images)
    apart = torch.cat([inception.features(one[None]) for one in images])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert together.std(0).max() > 0
    assert inception.features(images[:0]).shape == (0, 2048)


def test_names_are_those_of_the_published_file():
    names = set(FIDInception().state_dict())
    parameters = sum(p.numel() for p in FIDInception().parameters())
    assert len(names) == 566
    assert parameters == 23_850_960  # Inception-v3 without its auxiliary classifier, and 1008 classes
    for name in (
        "Conv2d_1a_3x3.conv.weight",
        "Conv2d_4a_3x3.bn.running_var",
        "Mixed_5b.branch5x5_2.conv.weight",
        "Mixed_5d.branch_pool.bn.bias",
        "Mixed_6a.branch3x3.conv.weight",
        "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.weight",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
        "fc.bias",
    ):
        assert name in names


def resized_by_hand(image: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's bilinear filter, pixel by pixel."""
    height, width = image.shape
    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@pytest.mark.parametrize("size", [(5, 8), (31, 17), (12, 12), (1, 3)])
def test_resizing_is_tensorflows(size):
    image = np.random.default_rng(0).uniform(0, 255, size)
    found = tensorflow_bilinear(torch.from_numpy(image).float()[None, None], 12)[0, 0]
    np.testing.assert_allclose(found.numpy(), resized_by_hand(image, 12), atol=1e-3)
    if size == (12, 12):
        np.testing.assert_array_equal(found.numpy(), image.astype(np.float32))


def test_files_without_counters_are_read(weights: Path, inception: FeatureExtractor, tmp_path: Path):
    tensors = {n: t for n, t in load_file(weights).items() if not n.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "old.safetensors")
    old = load_inception(tmp_path / "old.safetensors")
    assert old.fingerprint != inception.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("Mixed_6c.branch1x1.conv.weight"), "lacks Mixed_6c.branch1x1.conv.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "has the unknown extra"),
        (lambda t: t.update({"fc.bias": torch.zeros(1000)}), "has another shape of fc.bias"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change, message):
    tensors = inception_tensors()
    change(tensors)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        load_inception(path)


def test_a_pickle_or_a_missing_file_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="kilopix convert"):
        load_inception(tmp_path / "pt_inception.pth")
    with pytest.raises(UserError, match=r"none\.safetensors: no such file of weights"):
        load_inception(tmp_path / "none.safetensors")
