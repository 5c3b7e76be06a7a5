from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from kilopix.evaluation.geneval_prompts import OBJECTS
from kilopix.pretrained.detector import DetectorConfig, ObjectDetector, _bounds, load_detector
from kilopix.types import UserError
from tiny_models import save_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def detector(folder: Path) -> ObjectDetector:
    return load_detector(DetectorConfig(name=str(folder)), OBJECTS)


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


class _Fixed:
    """Stands in for the network: fixed answers, and a record of what it was shown."""

    def __init__(self, classes: torch.Tensor, masks: torch.Tensor):
        self.out = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
        self.seen: list[torch.Tensor] = []

    def __call__(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.seen.append(pixel_values)
        return self.out


def expected(classes: np.ndarray, masks: torch.Tensor, shapes: list[tuple[int, int]], floor: float):
    """(class, score, box, mask) by another way: every query and class by itself, in NumPy."""
    padded, inner, size = shapes
    chances = np.exp(classes - classes.max(1, keepdims=True))
    chances = (chances / chances.sum(1, keepdims=True))[:, :-1]
    pairs = [(chances[q, c], q, c) for q in range(len(chances)) for c in range(chances.shape[1])]
    out = []
    for chance, query, label in sorted(pairs, reverse=True)[:100]:
        up = interpolate(masks[query][None, None], padded, mode="bilinear", align_corners=False)
        up = up[:, :, : inner[0], : inner[1]]
        logit = interpolate(up, size, mode="bilinear", align_corners=False)[0, 0].numpy()
        inside = logit > 0
        if not inside.any():
            continue
        quality = (1 / (1 + np.exp(-logit[inside]))).mean()
        ys, xs = np.nonzero(inside)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        if chance * quality > floor:
            out.append((label, chance * quality, box, inside))
    return sorted(out, key=lambda one: -one[1])


def test_answers_are_read_as_published(detector: ObjectDetector, monkeypatch: pytest.MonkeyPatch):
    """50 x 70 pixels become 64 x 90, padded to 64 x 96; masks go back the same way."""
    generator = torch.Generator().manual_seed(1)
    classes = 3 * torch.randn(1, 12, 81, generator=generator)
    coarse = 4 * torch.randn(1, 12, 4, 6, generator=generator) - 2
    masks = interpolate(coarse, (16, 24), mode="bilinear")
    masks[0, 3] = -1  # a query that found nothing
    network = _Fixed(classes, masks)
    monkeypatch.setattr(detector, "_model", network)
    found = detector.detect(pictures(1, 50, 70), 0.05)[0]
    wanted = expected(classes[0].numpy(), masks[0], [(64, 96), (64, 90), (50, 70)], 0.05)
    assert network.seen[0].shape == (1, 3, 64, 96)
    assert (network.seen[0][..., 90:] == 0).all()
    assert len(found) == len(wanted) > 8
    for one, (label, score, box, mask) in zip(found, wanted, strict=True):
        assert one.detection.name == OBJECTS[label]
        assert one.detection.score == pytest.approx(score, rel=1e-5)
        assert one.detection.box == box
        assert (one.mask.numpy() == mask).all()
        assert one.detection.color is None


def test_longer_side_is_limited(detector: ObjectDetector, monkeypatch: pytest.MonkeyPatch):
    network = _Fixed(torch.zeros(1, 12, 81), torch.zeros(1, 12, 8, 24))
    monkeypatch.setattr(detector, "_model", network)
    assert detector.detect(pictures(1, 30, 120), 0.5) == [[]]
    assert network.seen[0].shape == (1, 3, 32, 96), "24 x 96, padded"


def test_pictures_are_normalised(detector: ObjectDetector):
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    pixels, inner = detector._prepare(grey)  # pyright: ignore
    assert inner == (64, 64)
    want = [(128 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert pixels[0, :, 5, 7].tolist() == pytest.approx(want)


def test_the_real_network_runs_whatever_the_batch(detector: ObjectDetector):
    images = pictures(5, 40, 48)
    together = detector.detect(images, 0.05)
    alone = [detector.detect(image[None], 0.05)[0] for image in images]
    assert [len(found) for found in together] == [len(found) for found in alone]
    assert min(map(len, together)) > 0
    for a, b in zip(chain(*together), chain(*alone), strict=True):
        assert a.detection.score == pytest.approx(b.detection.score, abs=1e-4)
        assert a.mask.shape == (40, 48)
    assert detector.detect(images[:0], 0.1) == []


def test_bounds_of_masks():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1, 2] = masks[0, 3, 5] = True
    masks[1, 4, 6] = True
    assert _bounds(masks).tolist() == [[2, 1, 6, 4], [6, 4, 7, 5], [0, 0, 0, 0]]


def test_fingerprint_changes_with_weights_and_sides(detector: ObjectDetector, tmp_path: Path):
    other = load_detector(DetectorConfig(name=str(save_detector(tmp_path / "a", seed=1))), OBJECTS)
    assert other.fingerprint.endswith("-64-96")
    assert other.fingerprint != detector.fingerprint
    (tmp_path / "a" / "preprocessor_config.json").unlink()
    usual = load_detector(DetectorConfig(name=str(tmp_path / "a")), OBJECTS)
    assert usual.fingerprint == other.fingerprint.replace("-64-96", "-800-1333")


def test_classes_of_another_order_are_refused(folder: Path, tmp_path: Path):
    text = (folder / "config.json").read_text(encoding="utf-8").replace('"15": "cat"', '"15": "dog"')
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UserError, match="not the 80 objects of COCO"):
        load_detector(DetectorConfig(name=str(tmp_path)), OBJECTS)
