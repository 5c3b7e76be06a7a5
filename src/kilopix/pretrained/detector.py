"""Object detectors that find the 80 objects of COCO: what GenEval looks at pictures with.

In: pictures of one size as 8-bit RGB. Out: for each, the objects found, with box, score and mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from kilopix.config import Config
from kilopix.pretrained.weights import find_model, read_network, weights_digest
from kilopix.runtime import read_json
from kilopix.types import Detection, UserError

_WEIGHTS = "model"
_DIVISOR = 32  # sides are padded to multiples of this
_MOST = 100  # objects of a picture
# Names that all lists of COCO's 80 objects spell alike, by their place in it.
_ANCHORS = {
    0: "person",
    1: "bicycle",
    2: "car",
    5: "bus",
    15: "cat",
    16: "dog",
    17: "horse",
    79: "toothbrush",
}


class DetectorConfig(Config):
    """Mask2Former of transformers, from the Hugging Face hub or a folder."""

    name: str = "facebook/mask2former-swin-small-coco-instance"
    revision: str | None = None


@dataclass(frozen=True)
class Found:
    """An object with its mask over the whole picture."""

    detection: Detection
    mask: Bool[Tensor, "H W"]


@runtime_checkable
class ObjectDetector(Protocol):
    """A frozen network that finds objects."""

    @property
    def name(self) -> str:
        """What score cards record."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two detectors exactly if they find the same: weights and sides."""
        ...

    def detect(self, images: UInt8[Tensor, "B 3 H W"], floor: float) -> list[list[Found]]:
        """The objects of each picture whose score is above `floor`, best first."""
        ...


class _Mask2Former:
    """Mask2Former's network; pictures are prepared, and its answers read, as in the published evaluation.

    The steps are those of mmdetection's Mask2Former (Cheng et al. 2022, arXiv 2112.01527): shorter side
    to 800 pixels but the longer to 1333 at most, bilinear; normalised, then padded with zeros; the 100 best
    pairs of query and class; a score is that of the class times the mean of the mask inside itself; a box is
    the bounds of the mask. Sides, mean and deviation are those that the model's own files name, if any.
    """

    def __init__(self, config: DetectorConfig, folder: Path, model: Any, names: Sequence[str], device: str):
        self.name = config.name
        self._folder = folder
        self._names = list(names)
        self._device = device
        self._model = model.to(device).eval().requires_grad_(False)
        settings = _read_settings(folder)
        self._sides = settings.short_side, settings.long_side
        self._mean = torch.tensor(settings.mean, device=device)[:, None, None]
        self._std = torch.tensor(settings.std, device=device)[:, None, None]

    @property
    def fingerprint(self) -> str:
        short, long = self._sides
        return f"mask2former-{weights_digest(self._folder, _WEIGHTS)}-{short}-{long}"

    @torch.inference_mode()
    def detect(self, images: UInt8[Tensor, "B 3 H W"], floor: float) -> list[list[Found]]:
        if not len(images):
            return []
        pixels, inner = self._prepare(images.to(self._device))
        out = self._model(pixel_values=pixels)
        classes = out.class_queries_logits.float().softmax(-1)[..., :-1]
        return [
            self._read(one, masks.float(), tuple(pixels.shape[-2:]), inner, tuple(images.shape[-2:]), floor)
            for one, masks in zip(classes, out.masks_queries_logits, strict=True)
        ]

    def _prepare(self, images: UInt8[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 3 P Q"], tuple[int, int]]:
        """The network's input, and its height and width before padding."""
        height, width = images.shape[-2:]
        short, long = self._sides
        scale = min(short / min(height, width), long / max(height, width))
        inner = (int(height * scale + 0.5), int(width * scale + 0.5))
        resized = F.interpolate(images.float(), inner, mode="bilinear", align_corners=False).round()
        normalised = (resized / 255 - self._mean) / self._std
        padding = (0, -inner[1] % _DIVISOR, 0, -inner[0] % _DIVISOR)
        return F.pad(normalised, padding), inner

    def _read(
        self,
        classes: Float[Tensor, "Q K"],
        masks: Float[Tensor, "Q h w"],
        padded: tuple[int, ...],
        inner: tuple[int, int],
        size: tuple[int, ...],
        floor: float,
    ) -> list[Found]:
        scores, order = classes.flatten().topk(min(_MOST, classes.numel()))
        queries, labels = order // classes.shape[1], order % classes.shape[1]
        able = scores > floor  # a score is at most that of its class
        scores, queries, labels = scores[able], queries[able], labels[able]
        if not len(scores):
            return []
        chosen, where = queries.unique(return_inverse=True)
        logits = F.interpolate(masks[chosen][None], padded, mode="bilinear", align_corners=False)
        logits = logits[..., : inner[0], : inner[1]]
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
        inside = logits > 0
        area = inside.sum((1, 2))
        quality = (logits.sigmoid() * inside).sum((1, 2)) / (area + 1e-6)
        boxes = _bounds(inside)
        scores = scores * quality[where]
        ranked = scores.sort(descending=True, stable=True).indices.tolist()
        values, kinds, places = scores.tolist(), labels.tolist(), where.tolist()
        inside, boxes = inside.cpu(), boxes.tolist()
        return [
            Found(Detection(self._names[kinds[i]], tuple(boxes[places[i]]), values[i]), inside[places[i]])
            for i in ranked
            if values[i] > floor
        ]


def _bounds(masks: Bool[Tensor, "Q H W"]) -> Float[Tensor, "Q 4"]:
    """(x1, y1, x2, y2) of each mask, the far corner one past its last pixel; zeros for an empty one."""
    sides = []
    for axis in (1, 2):
        touched = masks.any(axis)
        length = touched.shape[1]
        low = touched.float().argmax(1)
        high = length - touched.flip(1).float().argmax(1)
        sides.append((low, high))
    (x1, x2), (y1, y2) = sides
    boxes = torch.stack([x1, y1, x2, y2], dim=1).float()
    return boxes * masks.flatten(1).any(1)[:, None]


def load_detector(config: DetectorConfig, names: Sequence[str], device: str = "cpu") -> ObjectDetector:
    """Load Mask2Former, frozen; `names` are what its 80 classes are to be called, in COCO's order.

    Raises `UserError` if its files cannot be had, or if its classes are not COCO's 80.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    folder = find_model(config.name, config.revision, "", _WEIGHTS)
    _check_classes(folder, len(names))
    if find_spec("scipy") is None:
        raise UserError("detector: scipy is missing; run `pip install 'kilopix[eval]'`.")
    wrong = "its detector cannot be read"
    model = read_network(Mask2FormerForUniversalSegmentation, folder, wrong, torch.float32)
    return _Mask2Former(config, folder, model, names, device)


def _check_classes(folder: Path, count: int) -> None:
    labels = read_json(folder / "config.json").get("id2label", {})
    wrong = [i for i, name in _ANCHORS.items() if labels.get(str(i), "").lower() != name]
    if len(labels) != count or wrong:
        raise UserError(f"{folder}: its classes are not the {count} objects of COCO in their order.")


@dataclass(frozen=True)
class _Settings:
    """How pictures are prepared; the defaults are those of COCO's models."""

    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def _read_settings(folder: Path) -> _Settings:
    """The settings that the model's own file names, with the defaults for what it leaves out."""
    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    size, usual = values.get("size") or {}, _Settings()
    return _Settings(
        short_side=size.get("shortest_edge", usual.short_side),
        long_side=size.get("longest_edge", usual.long_side),
        mean=tuple(values.get("image_mean", usual.mean)),
        std=tuple(values.get("image_std", usual.std)),
    )
